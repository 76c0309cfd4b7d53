"""Names, things and small text helpers that the demo's generators share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

# What every generator returns: instruction, input (often empty) and response.
Pair = tuple[str, str, str]
Kind = Callable[[Random], Pair]


def split(text: str, at: str | None = None) -> list[str]:
    """The parts of a text that lists words, or with `at` phrases, in a row."""
    return [part.strip() for part in text.split(at)]


def table(text: str) -> list[tuple[str, str]]:
    """Name and content of every `name: content` line."""
    pairs = [line.split(": ", 1) for line in text.strip().splitlines()]
    return [(name, content) for name, content in pairs]


def listed(items: Sequence[str], last: str = "and") -> str:
    """The items as running text: `a`, `a and b`, `a, b and c`."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} {last} {items[-1]}"


def bullets(items: Sequence[str]) -> str:
    """The items as a dashed list."""
    return "\n".join(f"- {item}" for item in items)


def numbered(items: Sequence[str]) -> str:
    """The items as a numbered list."""
    return "\n".join(f"{number}. {item}" for number, item in enumerate(items, 1))


def capital(text: str) -> str:
    """The text with its first letter in upper case and the rest as it was."""
    return text[:1].upper() + text[1:]


def article(noun: str) -> str:
    """The noun behind `a` or `an`, told by its first letter."""
    return f"{'an' if noun[0].lower() in 'aeiou' else 'a'} {noun}"


# A few names are not ASCII on purpose: a reader that gets UTF-8 wrong should show it.
NAMES = split(
    "Ada Amir Anna Ben Bruno Carla Chen Clara Daniel Dora Elena Emil Farah Felix Grace Hana Hugo "
    "Ida Ivan Jonas José Julia Karim Lena Leo Lucía Marta Max Mei Nadia Nils Nora Omar Oscar Paula "
    "Petra Priya Ravi Rosa Sam Sofia Tariq Theo Uma Vera Victor Wanda Yusuf Zoë"
)
TOWNS = split(
    "Alderton Brackley Carrow Dunmere Eastwick Fenbridge Greyford Hallow Ironvale Kestrel Larkhill "
    "Marlow Northam Oakhurst Pinewood Queensport Ridgeway Stonebury Thornton Westbrook"
)
WORDS = split("green river stone paper level window yellow noon cloud table radar bread garden")
WEEKDAYS = split("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = split(
    "January February March April May June July August September October November December"
)
COUNTS = split("zero one two three four five six seven eight nine ten eleven twelve")
