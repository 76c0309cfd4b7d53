"""The pool of the world: samples whose kind is known, because they were made to be of it."""

from __future__ import annotations

import random
import string
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

from benchmarks.world.model import CHARACTERS
from benchmarks.world.tasks import BEYOND, LANGUAGE, LEARNABLE, MASTERED, WORDS, make_task
from instructdiff_ray.sample import Part, sample_id

# Kinds, and their shares of what is no noise.
KINDS = {
    "mastered": 0.30,
    "learnable": 0.25,
    "beyond": 0.15,
    "off-topic": 0.10,
    "near-duplicate": 0.10,
    "wrong answer": 0.05,
    "mismatched": 0.05,
}
SKILLS_OF = {
    "mastered": [*MASTERED],
    "learnable": [*LEARNABLE],
    "beyond": [*BEYOND],
    "off-topic": [LANGUAGE],
}
# Near-duplicates are of so many originals.
ORIGINALS = 10


@dataclass(frozen=True)
class Sample:
    """A prompt, a response, and what the sample is worth."""

    kind: str
    prompt: str
    response: str

    @property
    def id(self) -> str:
        """Its sample_id."""
        return sample_id([Part("instruction", self.prompt), Part("response", self.response)])


# A response and how to draw → noise.
Noise = Callable[[str, random.Random], str]
NOISE: dict[str, Noise] = {
    "random characters": lambda text, draw: "".join(draw.choices(CHARACTERS, k=len(text) + 4)),
    "random words": lambda text, draw: " ".join(draw.choices(WORDS, k=5)),
    "repeated": lambda text, draw: text * 3,
    "cut off": lambda text, draw: text[: max(1, len(text) // 2)],
}
SPOILT = {"wrong answer", "mismatched", *NOISE}


def make_pool(
    size: int, noise: float, seed: int, held_out: Collection[str] = ()
) -> dict[str, Sample]:
    """By sample_id, in the order of the ids; the few that are made twice are in it once.

    noise: its share, in equal parts of each sort; held_out: prompts that are not in it.
    """
    draw = random.Random(seed)
    clean = round(size * (1 - noise))
    samples = [
        sample
        for kind, share in KINDS.items()
        for sample in _make(kind, round(share * clean), draw)
    ]
    # What has one character can't be cut off.
    good = [s for s in samples if s.kind in ("mastered", "learnable") and len(s.response) > 1]
    for sort, spoil in NOISE.items():
        for sample in draw.choices(good, k=round(noise * size / len(NOISE))):
            samples.append(replace(sample, kind=sort, response=spoil(sample.response, draw)))
    by_id = {sample.id: sample for sample in samples if sample.prompt not in held_out}
    return {i: by_id[i] for i in sorted(by_id)}


def _make(kind: str, count: int, draw: random.Random) -> list[Sample]:
    if kind in SKILLS_OF:
        return [_sample(kind, draw.choice(SKILLS_OF[kind]), draw) for _ in range(count)]
    originals = [
        _sample(kind, draw.choice([*MASTERED, *LEARNABLE]), draw)
        for _ in range(ORIGINALS if kind == "near-duplicate" else count)
    ]
    if kind == "near-duplicate":
        return [_varied(draw.choice(originals), draw) for _ in range(count)]
    if kind == "wrong answer":
        return [replace(sample, response=_wrong(sample.response, draw)) for sample in originals]
    return [
        replace(sample, response=other.response)
        for sample, other in zip(originals, originals[1:] + originals[:1], strict=True)
        if other.response != sample.response
    ]


def _sample(kind: str, skill: str, draw: random.Random) -> Sample:
    task = make_task(skill, draw)
    return Sample(kind, task.prompt, task.answer)


def _varied(sample: Sample, draw: random.Random) -> Sample:
    marks = "".join(draw.choices(string.punctuation.replace("=", ""), k=2))
    return replace(sample, prompt=f"{sample.prompt[:-1]}{marks}=")


def _wrong(answer: str, draw: random.Random) -> str:
    """The answer with another character at one place."""
    place = draw.randrange(len(answer))
    others: Sequence[str] = [c for c in string.ascii_letters if c != answer[place]]
    return answer[:place] + draw.choice(others) + answer[place + 1 :]
