"""Samples that contain a benchmark's text, by runs of words.

A trace is a run of `ngram` words that a sample and a text of a benchmark have in common, anywhere
in what is asked or answered, across lines. A question with fewer words can't slip through: it is
found as a whole, from ANYWHERE words on anywhere, and a shorter one where it is all of a question,
or all of a line of one. As part of other text so few words would be found everywhere, and in
answers too ("none of the above"), so there they mean nothing; and a single word means nothing at
all. Nor do a few words of what asks nothing: an option, or a line of a program. Of scripts without
spaces two characters count as a word, about as long as one is in Chinese.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from instructdiff_ray.pool.partition import among
from instructdiff_ray.pool.words import HashedTexts, hashed, is_unspaced, words
from instructdiff_ray.sample import Part, Reject

# GPT-3's decontamination took runs of 8 to 13 words, by the length of the benchmark's texts.
ANYWHERE = 8
LEAST_WORDS = 2
CHARACTERS_PER_WORD = 2
SHOWN_WORDS = 13


class BenchmarkText(NamedTuple):
    """A text of a benchmark, and its place. asked: it is what a question asks, or of a file that
    does not tell: else a few words of it mean nothing."""

    file: str
    line: int
    text: str
    asked: bool


class Runs(NamedTuple):
    """Runs of so many words: their hashes, sorted, and the number of a text that each is of."""

    hashes: np.ndarray
    texts: np.ndarray

    def find(self, values: np.ndarray) -> np.ndarray:
        """A mask: which of these hashes are among the runs."""
        return among(values, self.hashes)

    def text_of(self, value: np.uint64) -> int:
        """The number of a text that this run is of."""
        return int(self.texts[np.searchsorted(self.hashes, value)])


@dataclass(frozen=True)
class Benchmarks:
    """What is looked for in samples.

    runs: by their number of words; whole: texts that count where they are a whole question or line
    of one, by theirs; places: file and line of each text; digest: hash of all the texts, whatever
    their files are called, and in whatever order they come.
    """

    runs: Mapping[int, Runs]
    whole: Mapping[int, Runs]
    places: Sequence[tuple[str, int]]
    digest: str

    def check(self, samples: Sequence[Sequence[Part]]) -> list[Reject | None]:
        """Of each sample, what it contains of a benchmark; None: nothing."""
        found: list[Reject | None] = [None] * len(samples)
        texts = [(n, part.text) for n, parts in enumerate(samples) for part in parts]
        self._look_up(texts, self.runs, found, whole=False)
        if self.whole:
            asked = [
                (n, piece)
                for n, parts in enumerate(samples)
                for part in parts
                if part.kind in ("instruction", "input")
                for piece in dict.fromkeys([part.text, *part.text.splitlines()])
            ]
            self._look_up(asked, self.whole, found, whole=True)
        return found

    def _look_up(
        self,
        texts: Sequence[tuple[int, str]],
        runs: Mapping[int, Runs],
        found: list[Reject | None],
        whole: bool,
    ) -> None:
        """Note of each text's sample the first run that is found; the longest are looked for first.
        whole: a run counts only where it is a text's only one."""
        split = [words(text) for _, text in texts]
        hashes = hashed(split)
        for size in sorted(runs, reverse=True):
            values, of = hashes.windows(size)
            hits = runs[size].find(values)
            if whole:
                hits &= hashes.sizes[of] == size
            for place in np.flatnonzero(hits):
                text = int(of[place])
                sample = texts[text][0]
                if found[sample] is None:
                    start = int(place - np.searchsorted(of, text))
                    phrase = split[text][start : start + size]
                    found[sample] = self._reject(runs[size], values[place], phrase)

    def _reject(self, runs: Runs, value: np.uint64, phrase: Sequence[str]) -> Reject:
        file, line = self.places[runs.text_of(value)]
        shown = " ".join(phrase[:SHOWN_WORDS]) + " …" * (len(phrase) > SHOWN_WORDS)
        return Reject("contaminated", f"{len(phrase)} words of {file} line {line}: {shown}")


def index_benchmarks(texts: Iterable[BenchmarkText], ngram: int) -> Benchmarks:
    """What is looked for, of these texts."""
    runs: dict[int, list[tuple[int, list[str]]]] = defaultdict(list)
    whole: dict[int, list[tuple[int, list[str]]]] = defaultdict(list)
    places: list[tuple[str, int]] = []
    digests: list[bytes] = []
    for text in texts:
        split = words(text.text)
        size = CHARACTERS_PER_WORD if is_unspaced(split) else 1
        anywhere = min(ANYWHERE, ngram) if text.asked else ngram
        if len(split) >= size * anywhere:
            runs[min(size * ngram, len(split))].append((len(places), split))
        elif len(split) >= size * LEAST_WORDS and text.asked:
            whole[len(split)].append((len(places), split))
        else:
            continue
        places.append((text.file, text.line))
        digests.append(hashlib.sha256(f"{' '.join(split)}\n{text.asked}\n".encode()).digest())
    return Benchmarks(
        {size: _runs(of, size) for size, of in runs.items()},
        {size: _runs(of, size) for size, of in whole.items()},
        places,
        hashlib.sha256(b"".join(sorted(digests))).hexdigest()[:16],
    )


def _runs(texts: Sequence[tuple[int, list[str]]], size: int) -> Runs:
    hashes: HashedTexts = hashed([text for _, text in texts])
    values, of = hashes.windows(size)
    values, first = np.unique(values, return_index=True)
    return Runs(values, np.array([number for number, _ in texts])[of[first]])
