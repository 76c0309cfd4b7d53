"""ZIP: greedy selection of what compresses least (Yin et al., 2024, *Entropy Law*).

With g(D) = bytes of D's text / bytes of it compressed by zlib at level 9, lower is more diverse.
The state of a sample is first g of it alone. Until the budget is full: (1) g(S ∪ {x}) is computed
anew for the K1 samples x of lowest state; (2) the K2 lowest of these are marked, which puts them
behind all others; (3) from an empty set L, K3 of the K2 are taken one by one, each the one of
lowest g(L ∪ {x}), and join the selection S.

As published, the K1 of lowest state may reach back to marked samples, and then to selected ones: a
sample can be taken twice, fills the budget twice and is selected once. `zip_unique` never does.
No model runs; the texts of a domain are in the driver's memory.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence

import numpy as np

K1, K2, K3 = 10_000, 200, 100
MARKED = np.inf


class Compressed:
    """Texts one behind the other, compressed as they come: none is compressed again."""

    def __init__(self) -> None:
        self.stream = zlib.compressobj(9)
        self.size = self.compressed = 0

    def add(self, text: bytes) -> None:
        self.compressed += len(self.stream.compress(text))
        self.size += len(text)

    def ratio_with(self, text: bytes) -> float:
        """g of what is there and this text."""
        fork = self.stream.copy()
        rest = len(fork.compress(text)) + len(fork.flush())
        return (self.size + len(text)) / (self.compressed + rest)


def greedy_order(texts: Sequence[bytes], unique: bool) -> Iterator[int]:
    """Positions in `texts` in the order in which they are taken; of equal ratios the first."""
    state = np.array([Compressed().ratio_with(text) for text in texts])
    free = np.ones(len(texts), bool)
    selection = Compressed()
    while free.any():
        places = np.flatnonzero(free) if unique else np.arange(len(texts))
        nearest = places[np.argsort(state[places], kind="stable")[:K1]]
        state[nearest] = [selection.ratio_with(texts[place]) for place in nearest]
        best = nearest[np.argsort(state[nearest], kind="stable")[:K2]]
        state[best] = MARKED
        for place in _greedy(texts, best.tolist()):
            yield place
            free[place] = False
            selection.add(texts[place])


def _greedy(texts: Sequence[bytes], places: list[int]) -> Iterator[int]:
    chosen = Compressed()
    for _ in range(min(K3, len(places))):
        place = min(places, key=lambda p: chosen.ratio_with(texts[p]))
        places.remove(place)
        chosen.add(texts[place])
        yield place


def zip_order(texts: Sequence[bytes]) -> Iterator[int]:
    """ZIP as published."""
    return greedy_order(texts, unique=False)


def zip_unique_order(texts: Sequence[bytes]) -> Iterator[int]:
    """ZIP that takes each text once."""
    return greedy_order(texts, unique=True)
