"""The tasks of the world: short strings with one right answer, and a language of a few words.

A sample is a line of characters, `reverse abcd=dcba`: prompt and response meet at the `=`.
"""

from __future__ import annotations

import random
import string
from collections.abc import Callable
from dataclasses import dataclass, replace

WORDS = [
    *("the", "a", "one", "every", "old", "small", "red", "quiet", "green", "king", "cat", "river"),
    *("stone", "garden", "child", "house", "road", "bird", "night", "door", "sees", "finds"),
    *("keeps", "loses", "under", "over", "beside", "near", "with", "without", "and", "but"),
    *("slowly", "again"),
]
VOWELS = "aeiou"
CONSONANTS = "".join(c for c in string.ascii_lowercase if c not in VOWELS)


@dataclass(frozen=True)
class Task:
    """What a model is asked, and the only right answer."""

    skill: str
    prompt: str
    answer: str


def letters(draw: random.Random, low: int, high: int) -> str:
    """A made-up word of as many letters as lie between the bounds: consonants and vowels in turn,
    so that random characters are not of the language."""
    count, first = draw.randint(low, high), draw.randint(0, 1)
    return "".join(draw.choice(VOWELS if (first + n) % 2 else CONSONANTS) for n in range(count))


def _next_letters(text: str) -> str:
    return "".join(chr((ord(c) - ord("a") + 1) % 26 + ord("a")) for c in text)


def _alternate(text: str) -> str:
    return "".join(c.upper() if place % 2 else c for place, c in enumerate(text))


def _on_letters(
    function: Callable[[str], str], low: int = 3, high: int = 5
) -> Callable[[random.Random], tuple[str, str]]:
    def make(draw: random.Random) -> tuple[str, str]:
        text = letters(draw, low, high)
        return text, function(text)

    return make


def _product(draw: random.Random) -> tuple[str, str]:
    left, right = draw.randint(100, 999), draw.randint(100, 999)
    return f"{left}*{right}", str(left * right)


def _sentence(draw: random.Random) -> tuple[str, str]:
    words = draw.choices(WORDS, k=draw.randint(4, 7))
    # Each word says which may follow: a language that can be learned, and that noise is not.
    for place in range(1, len(words)):
        start = WORDS.index(words[place - 1]) * 7
        words[place] = WORDS[(start + draw.randrange(4)) % len(WORDS)]
    return words[0], " ".join(words)


COPY, UPPER, FIRST, LAST, NEXT, ALTERNATE = (
    _on_letters(str),
    _on_letters(str.upper),
    _on_letters(lambda text: text[0]),
    _on_letters(lambda text: text[-1]),
    _on_letters(_next_letters),
    _on_letters(_alternate),
)
# Argument and answer of each skill, by the word that asks for it. The base model is asked by some
# words in its pre-training. Others ask for what it can do in words that are new to it, as
# instructions do to a model that has only read; and two ask for what it can't do.
MASTERED = {"copy": COPY, "upper": UPPER, "first": FIRST}
HIDDEN = {"last": LAST, "next": NEXT, "alternate": ALTERNATE}
LEARNABLE = {"say": COPY, "shout": UPPER, "end": LAST, "shift": NEXT, "wave": ALTERNATE}
BEYOND = {"multiply": _product, "sort": _on_letters(lambda text: "".join(sorted(text)), 10, 12)}
SKILLS = {**MASTERED, **LEARNABLE, **BEYOND}
LANGUAGE = "tell"
ALL = {**SKILLS, **HIDDEN, LANGUAGE: _sentence}
# Of what the base model reads in its pre-training: weights.
MIX = {**dict.fromkeys([*MASTERED, *HIDDEN], 10.0), **dict.fromkeys(BEYOND, 1.0), LANGUAGE: 15.0}


def make_task(skill: str, draw: random.Random) -> Task:
    """A task of this skill, or a sentence of the language."""
    argument, answer = ALL[skill](draw)
    return Task(skill, f"{skill} {argument}=", answer)


def pretraining_tasks(count: int, draw: random.Random) -> list[Task]:
    """What the base model reads, by MIX. Half of the sentences stand alone, so that it knows what
    that is like: a response without its prompt (`ifd`)."""
    skills = draw.choices([*MIX], [*MIX.values()], k=count)
    tasks = [make_task(skill, draw) for skill in skills]
    return [
        replace(task, prompt="=") if task.skill == LANGUAGE and draw.random() < 0.5 else task
        for task in tasks
    ]
