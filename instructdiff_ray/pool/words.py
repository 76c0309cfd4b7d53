"""Texts as words, and runs of words as numbers: what texts are compared by.

Words are what Unicode calls letters and digits, whatever their case, with the marks on them (vowels
of Hindi or Arabic are), so that punctuation, markup and line breaks hide nothing. Where a script
puts no spaces between words, each character is taken for one.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b
from itertools import chain
from typing import NamedTuple

import numpy as np

# Thai to Burmese, Khmer, kana, and Chinese characters.
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff"
# Those that choose a character's look, as of emoji, are no part of a word.
MARKS = "".join(
    chr(code)
    for code in chain(range(0x300, 0xFE00), range(0x10000, 0x1F000))
    if unicodedata.category(chr(code)) in ("Mn", "Mc")
)
LETTER = rf"[^\W_{UNSPACED}]"
WORD = re.compile(rf"(?=\w)[{UNSPACED}][{MARKS}]*|{LETTER}(?:{LETTER}|[{MARKS}])*")
UNSPACED_WORD = re.compile(rf"[{UNSPACED}]")
FACTOR = np.uint64(0x9E3779B97F4A7C15)
CACHED_WORDS = 1 << 18


def words(text: str) -> list[str]:
    """The words of a text, in their order."""
    return WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def is_unspaced(words: Sequence[str]) -> bool:
    """Whether most of these words are characters of a script without spaces."""
    return 2 * sum(bool(UNSPACED_WORD.match(word)) for word in words) > len(words)


class HashedTexts(NamedTuple):
    """Texts one behind the other: the hash of each word, uint64, and where each text starts, with
    the end behind the last."""

    values: np.ndarray
    starts: np.ndarray

    @property
    def sizes(self) -> np.ndarray:
        """How many words each text has."""
        return np.diff(self.starts)

    def windows(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Of each `size` words in a row within a text, a hash, and the number of their text."""
        values = run_hashes(self.values, size)
        texts = np.repeat(np.arange(len(self.sizes)), self.sizes)
        within = texts[: len(values)] == texts[size - 1 :]
        return values[within], texts[: len(values)][within]


def hashed(texts: Sequence[Sequence[str]]) -> HashedTexts:
    """These texts, each of which is its words."""
    starts = np.cumsum([0, *map(len, texts)], dtype=np.int64)
    hashes = (word_hash(word) for text in texts for word in text)
    return HashedTexts(np.fromiter(hashes, np.uint64, int(starts[-1])), starts)


@lru_cache(CACHED_WORDS)
def word_hash(word: str) -> int:
    """64 bits, the same in every process."""
    return int.from_bytes(blake2b(word.encode(), digest_size=8).digest(), "little")


def run_hashes(values: np.ndarray, size: int) -> np.ndarray:
    """A hash of each `size` words in a row: uint64, of as many words as there are less size − 1."""
    count = max(0, len(values) - size + 1)
    total = np.zeros(count, np.uint64)
    for offset in range(size):
        total = total * FACTOR + values[offset : offset + count]
    return total
