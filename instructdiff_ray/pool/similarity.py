"""How alike texts are, by their shingles: sets of three words in a row.

Candidates are texts that share a bucket of MinHash signatures (by rensa, the extra `clean`); of
these, exact Jaccard similarity decides. So nothing is called alike that is not. What is only just
alike is missed once in a hundred times, and hardly ever where it is more; and a text is compared
with MOST_COMPARED at most.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import cache
from heapq import nsmallest
from importlib.util import find_spec
from itertools import chain

import numpy as np

from instructdiff_ray.errors import require
from instructdiff_ray.pool.words import FACTOR, HashedTexts, hashed, words

PACKAGE = "rensa"
SHINGLE = 3
SIGNATURE, SEED = 128, 1
# Of pairs that are just as similar as asked, the share that comes to share a bucket.
RECALL = 0.99
# A shingle leads to so many earlier texts at most, and a text is compared with so many: of
# thousands that are of the same few words, all would be compared otherwise.
MOST_COMPARED, COMPARED_AT_ONCE = 1024, 64
ROUNDING = 1e-9


def check_similarity(similarity: float | None) -> None:
    """Raises UserError where the library is wanted and not installed."""
    require(
        similarity is None or find_spec(PACKAGE) is not None,
        f"clean.near_duplicates needs {PACKAGE} on all machines: pip install"
        " 'instructdiff-ray[clean]'",
    )


def compared_text(parts: Sequence[Mapping[str, str]]) -> str:
    """The text of a sample's parts. System prompts are left aside: many samples have the same,
    which says nothing of them."""
    return "\n".join(part["text"] for part in parts if part["kind"] != "system")


def shingles(texts: Sequence[str]) -> HashedTexts:
    """The hashes of each text's shingles, one behind the other, as often as they come. A text of
    fewer words is one shingle; one without words has none."""
    by_word = hashed([words(text) for text in texts])
    runs = [by_word.windows(SHINGLE)]
    for size in range(1, SHINGLE):
        values, of = by_word.windows(size)
        whole = by_word.sizes[of] == size
        runs.append((values[whole], of[whole]))
    values, of = (np.concatenate(each) for each in zip(*runs, strict=True))
    order = np.argsort(of, kind="stable")
    counts = np.bincount(of, minlength=len(texts))
    return HashedTexts(values[order], np.append(0, np.cumsum(counts)))


def sets_of(texts: HashedTexts) -> list[np.ndarray]:
    """Of each text its shingles, sorted, each once."""
    return [np.unique(each) for each in split_sets(texts.values, texts.starts)]


def split_sets(values: np.ndarray, starts: np.ndarray) -> list[np.ndarray]:
    """What lies one behind the other, each by itself. starts: of each, with the end of the last."""
    # NumPy makes a piece of nothing, too.
    return np.split(values, starts[1:-1])[: len(starts) - 1]


@cache
def band_rows(similarity: float) -> int:
    """How many values of a signature are a band: as many as leave the recall, for more of them
    make fewer candidates in vain."""

    def recall(rows: int) -> float:
        return 1 - (1 - similarity**rows) ** (SIGNATURE // rows)

    return max(rows for rows in range(1, SIGNATURE + 1) if recall(rows) >= RECALL)


def band_count(similarity: float) -> int:
    """In how many buckets each text is."""
    return SIGNATURE // band_rows(similarity)


def buckets(texts: HashedTexts, similarity: float) -> np.ndarray:
    """The buckets of each text that has shingles: uint64 [N, bands]. Texts that are alike share one
    of them, very likely."""
    # A worker's machine may lack what the driver's has.
    check_similarity(similarity)
    from rensa import RMinHash

    matrix = RMinHash.digest_matrix_from_flat_token_hashes(
        texts.values, texts.starts.astype(np.uint64), SIGNATURE, SEED
    )
    rows, bands = band_rows(similarity), band_count(similarity)
    signatures = np.array(matrix.to_rows(), np.uint64).reshape(-1, SIGNATURE)
    by_band = signatures[:, : bands * rows].reshape(-1, bands, rows)
    # Equal values in different bands are different buckets.
    total = np.broadcast_to(np.arange(1, bands + 1, dtype=np.uint64), by_band.shape[:2])
    for row in range(rows):
        total = (total + by_band[:, :, row]) * FACTOR
        total = total ^ (total >> np.uint64(29))
    return total * FACTOR


def components(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nodes of a graph with these edges, sorted, and of each the least node that it is
    connected with."""
    nodes, ends = np.unique(np.concatenate([first, second]), return_inverse=True)
    a, b = ends[: len(first)], ends[len(first) :]
    roots = np.arange(len(nodes))
    while len(a):
        low = np.minimum(roots[a], roots[b])
        np.minimum.at(roots, roots[a], low)
        np.minimum.at(roots, roots[b], low)
        while not np.array_equal(roots, above := roots[roots]):
            roots = above
        apart = roots[a] != roots[b]
        a, b = a[apart], b[apart]
    return nodes, nodes[roots]


def find_alike(
    sets: Sequence[np.ndarray], similarity: float, earlier: int | None = None
) -> np.ndarray:
    """Of each text the number of one before it that stays and is like it, or −1: it stays itself.

    sets: of each its shingles, sorted, each once. earlier: so many of the first are known to stay,
    and the others are compared with these alone; None: each with those before it.

    Two sets that are alike have one of their rarest shingles in common: those that are left when
    as many are taken away as they must share at least, less one (prefix filtering, as in Bayardo
    et al. 2007). So a text is compared with the earlier ones that one of its rarest leads to.
    """
    ranked = _rarest_first(sets)
    marks = np.zeros(1 + max((int(ranks[-1]) for ranks in ranked if len(ranks)), default=0), bool)
    alike = np.full(len(sets), -1)
    led_to: dict[int, list[int]] = defaultdict(list)
    for number, ranks in enumerate(ranked):
        least = math.ceil(similarity * len(ranks) - ROUNDING)
        rarest = ranks[: len(ranks) - least + 1].tolist()
        if earlier is None or number >= earlier:
            nearest = _nearest([led_to[rank] for rank in rarest if rank in led_to])
            alike[number] = _first_alike(ranks, nearest, ranked, similarity, marks)
        if alike[number] < 0 and (earlier is None or number < earlier):
            for rank in rarest:
                if len(led_to[rank]) < MOST_COMPARED:
                    led_to[rank].append(number)
    return alike


def _nearest(led_to: Sequence[Sequence[int]]) -> list[int]:
    """The numbers that come most often, MOST_COMPARED at most, those first; of equals the least."""
    shared = Counter(chain.from_iterable(led_to))
    return nsmallest(MOST_COMPARED, shared, key=lambda number: (-shared[number], number))


def _rarest_first(sets: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Each set with its shingles as their ranks, sorted: the rarer in all sets, the lower."""
    starts = np.cumsum([len(each) for each in sets])[:-1]
    values, places, counts = np.unique(
        np.concatenate([np.empty(0, np.uint64), *sets]), return_inverse=True, return_counts=True
    )
    ranks = np.empty(len(values), np.int32)
    ranks[np.argsort(counts, kind="stable")] = np.arange(len(values), dtype=np.int32)
    return [np.sort(each) for each in np.split(ranks[places], starts)] if len(sets) else []


def _first_alike(
    ranks: np.ndarray,
    nearest: Sequence[int],
    ranked: Sequence[np.ndarray],
    similarity: float,
    marks: np.ndarray,
) -> int:
    """The first of the nearest sets that has this Jaccard similarity with one, or −1. marks: all
    false, a place for each rank; given back so."""
    marks[ranks] = True
    first = -1
    for start in range(0, len(nearest), COMPARED_AT_ONCE):
        numbers = nearest[start : start + COMPARED_AT_ONCE]
        sizes = np.array([len(ranked[number]) for number in numbers])
        values = np.concatenate([ranked[number] for number in numbers])
        starts = np.cumsum(sizes) - sizes
        common = np.add.reduceat(marks[values], starts, dtype=np.int64)
        hits = common >= similarity * (len(ranks) + sizes - common) - ROUNDING
        if hits.any():
            first = numbers[int(hits.argmax())]
            break
    marks[ranks] = False
    return first
