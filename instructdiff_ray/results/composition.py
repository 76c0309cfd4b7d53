"""What the selection is made of, beside the pool: does one source, template or text fill it?

Some samples of each are looked at: what fills a large part of a selection shows in a thousand.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from instructdiff_ray.selection.ranking import Ranking
from instructdiff_ray.selection.select import SELECTED

SAMPLES = 1000
OPENING_WORDS, OPENING_CHARACTERS = 5, 80
# Near-duplicates: characters that are compared, in pieces of so many, and how alike they must be.
COMPARED_CHARACTERS, SHINGLE_CHARACTERS, LEAST_SIMILARITY = 2000, 8, 0.8
HASHES = 128
# The same file, the same beginning of the prompt, the same of the response, the same response.
SOURCE, TEMPLATE, OPENING, NEAR_IDENTICAL = (
    "one source",
    "one template",
    "one opening",
    "near-identical responses",
)


@dataclass(frozen=True)
class Concentration:
    """What many of the selected samples have in common.

    kind: SOURCE, TEMPLATE, OPENING or NEAR_IDENTICAL.
    value: the file, or the first words; selected, pool: the share of each that has it.
    """

    kind: str
    value: str
    selected: float
    pool: float

    @property
    def excess(self) -> float:
        """By how much the selection has more of it than the pool."""
        return self.selected - self.pool


def comparable_draws(ranking: Ranking) -> tuple[list[int], list[int]]:
    """Places in the ranking of a random sample of the selection, and of one of the pool that has as
    many of each domain. Ids are hashes, so the first are random."""
    domains, _ = ranking.codes("domain")
    selected = np.flatnonzero(ranking.has_fate(SELECTED))[:SAMPLES]
    counts = zip(*np.unique(domains[selected], return_counts=True), strict=True)
    pool = [np.flatnonzero(domains == domain)[:count] for domain, count in counts]
    return selected.tolist(), np.concatenate([selected[:0], *pool]).tolist()


def compare_with_pool(
    selected: Sequence[dict[str, Any]], pool: Sequence[dict[str, Any]]
) -> list[Concentration]:
    """Of each kind what the selection has most in excess of the pool.

    Both: `file` and `parts` of some samples.
    """
    keys = {
        SOURCE: lambda row: row["file"],
        TEMPLATE: lambda row: opening(_text(row, response=False)),
        OPENING: lambda row: opening(_text(row, response=True)),
    }
    concentrations = [
        most_in_excess(kind, [key(row) for row in selected], [key(row) for row in pool])
        for kind, key in keys.items()
    ]
    alike, alike_in_pool = (
        near_duplicates([_text(row, response=True) for row in rows]).mean()
        for rows in (selected, pool)
    )
    return [*concentrations, Concentration(NEAR_IDENTICAL, "", float(alike), float(alike_in_pool))]


def most_in_excess(kind: str, selected: Sequence[str], pool: Sequence[str]) -> Concentration:
    """The value whose share of the selected is furthest above its share of the pool."""
    counts, pool_counts = Counter(selected), Counter(pool)
    shares = [
        Concentration(kind, value, count / len(selected), pool_counts[value] / len(pool))
        for value, count in counts.items()
    ]
    return max(shares, key=lambda share: (share.excess, share.value))


def opening(text: str) -> str:
    """The first words, in lower case, as a terminal may show them."""
    words = text.casefold().split(maxsplit=OPENING_WORDS)[:OPENING_WORDS]
    printable = "".join(
        c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(words)
    )
    return printable[:OPENING_CHARACTERS]


def near_duplicates(texts: Sequence[str]) -> np.ndarray:
    """Which of the texts are nearly the same as another of them: a mask.

    Their sets of shingles have a Jaccard similarity of at least LEAST_SIMILARITY, as estimated by
    the share of minimum hashes that agree (Broder, 1997, *On the resemblance and containment of
    documents*).
    """
    # The same on every machine.
    factors = np.random.default_rng(0).integers(
        2**64, size=HASHES + SHINGLE_CHARACTERS, dtype=np.uint64
    )
    signatures = np.array([_minimum_hashes(text, factors) for text in texts])
    mask = np.zeros(len(texts), bool)
    for place, signature in enumerate(signatures):
        similarity = (signatures == signature).mean(axis=1)
        similarity[place] = 0
        mask[place] = similarity.max() >= LEAST_SIMILARITY
    return mask


def _minimum_hashes(text: str, factors: np.ndarray) -> np.ndarray:
    """[HASHES] uint64. factors: a random number for each hash, and for each place in a shingle."""
    padded = text.casefold()[:COMPARED_CHARACTERS].ljust(SHINGLE_CHARACTERS)
    characters = np.frombuffer(padded.encode("utf-32-le", "surrogatepass"), np.uint32)
    windows = sliding_window_view(characters.astype(np.uint64), SHINGLE_CHARACTERS)
    shingles = np.unique((windows * factors[HASHES:]).sum(axis=1))
    # Multiplied by odd numbers modulo 2⁶⁴ and mixed, for low bits only depend on low bits.
    products = shingles[:, None] * (factors[:HASHES] | np.uint64(1))
    return np.asarray((products ^ (products >> np.uint64(32))).min(axis=0))


def _text(row: dict[str, Any], response: bool) -> str:
    """All responses, or all that they answer."""
    texts = [part["text"] for part in row["parts"] if (part["kind"] == "response") == response]
    return "\n".join(texts)
