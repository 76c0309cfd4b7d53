"""ZIP: greedy selection of what compresses least (Yin et al., 2024, *Entropy Law*).

With g(D) = bytes of D's text / bytes of it compressed by zlib at level 9, lower is more diverse.
The state of a sample is first g of it alone. Until the budget is full: (1) g(S ∪ {x}) is computed
anew for the K1 samples x of lowest state; (2) the K2 lowest of these are marked, which puts them
behind all others; (3) from an empty set L, K3 of the K2 are taken one by one, each the one of
lowest g(L ∪ {x}), and join the selection S.

As published, the K1 of lowest state may reach back to marked samples, and then to selected ones: a
sample can be picked twice, fills the budget twice and is selected once. `zip_unique` never does.
A sample's text is its parts, a line each; the authors compress Python's notation of the row.
The text of the pool is in the driver's memory; no model runs.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
import pyarrow as pa

from instructdiff_ray.config.run import Config
from instructdiff_ray.config.selection import SelectConfig
from instructdiff_ray.pool.pool import Pool, pool_rows
from instructdiff_ray.selection.select import sample_count

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


def greedy_picks(texts: Sequence[bytes], unique: bool) -> Iterator[int]:
    """Places in `texts` in the order in which they are picked; of equal ratios the first place."""
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


def order_by_compression(config: Config, pool: Pool) -> dict[str, int]:
    """The place of each picked sample in the order of picking, within its domain's budget."""
    columns = ["sample_id", "domain", "parts", "response_tokens"]
    table = pa.concat_tables(pool_rows(pool, pool.ids(), columns))
    table = table.sort_by("sample_id")
    domains, ids = table["domain"].to_numpy(), table["sample_id"].to_pylist()
    tokens = table["response_tokens"].to_numpy()
    texts = [
        "".join(f"{part['text']}\n" for part in parts).encode()
        for parts in table["parts"].to_pylist()
    ]
    order: dict[str, int] = {}
    for domain in np.unique(domains):
        own = np.flatnonzero(domains == domain)
        picks = greedy_picks([texts[i] for i in own], config.strategy == "zip_unique")
        taken = _within_budget(picks, tokens[own], config.select_of(domain))
        for number, pick in enumerate(taken):
            order.setdefault(ids[own[pick]], number)
    return order


def _within_budget(picks: Iterator[int], tokens: np.ndarray, config: SelectConfig) -> list[int]:
    """Picks until the budget is full; what is picked twice counts twice."""
    taken: list[int] = []
    while some := list(islice(picks, K3)):
        taken += some
        if len(taken) >= (count := sample_count(tokens, tokens[taken], config)):
            return taken[:count]
    return taken
