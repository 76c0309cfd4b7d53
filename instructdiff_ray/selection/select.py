"""Select: Algorithm 1's filter and ranking, exact and deterministic. A pure function of columns.

Within each domain of N samples: order by (ΔNLL, sample_id), reject the first and the last ⌊γN⌋;
order what is left, the learnable band, by (ΔH, sample_id) and keep the first max(1, ⌊βN⌋), or what
another budget buys (budgets.py). A baseline has no filter and ranks by another value.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from instructdiff_ray.config.selection import SelectConfig
from instructdiff_ray.pool.sampling import floor_share
from instructdiff_ray.selection.budgets import TOKENS, Budget

# `excluded`: in the band, and by an option or the strategy's own rule never to be selected.
FATES = SELECTED, BELOW, ABOVE, NOT_TOP, EXCLUDED = (
    "selected",
    "below_band",
    "above_band",
    "not_top",
    "excluded",
)
# Positions taken of an order before the budget is looked at.
BUDGET_CHECK = 100


@dataclass(frozen=True)
class Candidates:
    """What N samples are selected by, in the order of sample_id, which decides between equals.

    domains: a number for each domain, from 0 on; tokens: of the response.
    values: by which samples are ranked; filter_values: ΔNLL or ΔPPL, by which the filter cuts both
        ends, None: no filter.
    decided: the fate of samples that are never selected, as a number in FATES; −1 for all others,
        whose values are finite.
    """

    domains: np.ndarray
    tokens: np.ndarray
    values: np.ndarray
    filter_values: np.ndarray | None
    decided: np.ndarray

    def take(self, rows: Any) -> Candidates:
        """Those of an index."""
        by = self.filter_values
        return Candidates(
            self.domains[rows],
            self.tokens[rows],
            self.values[rows],
            None if by is None else by[rows],
            self.decided[rows],
        )


def select(
    candidates: Candidates,
    end: str | None,
    configs: Sequence[SelectConfig],
    budgets: Sequence[Budget],
) -> np.ndarray:
    """The fate of each sample, as its number in FATES: int8 [N].

    end: of the values: lowest, middle or highest; None: as each domain's `entropy` says. configs,
    budgets: by domain number. Raises ValueError where a value is not finite.
    """
    _check_finite(candidates)
    fates = np.empty(len(candidates.domains), np.int8)
    for domain, (config, budget) in enumerate(zip(configs, budgets, strict=True)):
        rows = rows_of(candidates.domains, domain, len(configs))
        wanted_end = end or config.entropy
        fates[rows] = _select_in_domain(candidates.take(rows), wanted_end, config, budget)
    return fates


def rows_of(domains: np.ndarray, domain: int, count: int) -> Any:
    """An index of the rows of a domain, one of `count`; of a single one a slice, which copies
    nothing."""
    return slice(None) if count == 1 else np.flatnonzero(domains == domain)


def _select_in_domain(
    candidates: Candidates, end: str, config: SelectConfig, budget: Budget
) -> np.ndarray:
    fates = np.full(len(candidates.values), FATES.index(NOT_TOP), np.int8)
    band = np.ones(len(fates), bool)
    if candidates.filter_values is not None:
        cut = floor_share(config.reject_ratio, len(band))
        below = lowest(candidates.filter_values, band, cut)
        not_above = lowest(candidates.filter_values, band, len(band) - cut)
        fates[below] = FATES.index(BELOW)
        fates[~not_above] = FATES.index(ABOVE)
        band = not_above & ~below
    free = band & (candidates.decided < 0)
    decided = band & ~free
    fates[decided] = candidates.decided[decided]
    fates[_first(candidates, free, end, budget)] = FATES.index(SELECTED)
    return fates


def _first(candidates: Candidates, free: np.ndarray, end: str, budget: Budget) -> np.ndarray:
    """Of the candidates that are free those wanted first, as many as the domain's budget buys: a
    mask."""
    values, size = candidates.values, int(free.sum())
    tokens = candidates.tokens[:0]
    if budget.unit == TOKENS:  # then it depends on which come first
        order = np.argsort(_sort_keys(values[free], end), kind="stable")
        tokens = candidates.tokens[free][order]
    count = min(budget.samples(tokens), size)
    if end == "middle":
        before = size // 2 - count // 2
        return lowest(values, free, before + count) & ~lowest(values, free, before)
    return lowest(values, free, count, highest=end == "highest")


def _check_finite(candidates: Candidates) -> None:
    finite = np.isfinite(candidates.values) | (candidates.decided >= 0)
    if candidates.filter_values is not None:
        finite &= np.isfinite(candidates.filter_values)
    if not finite.all():
        raise ValueError("scores are not finite")


def take_within_budget(order: Iterator[int], tokens: np.ndarray, budget: Budget) -> list[int]:
    """Positions as they come, until a domain's budget is full; what comes twice counts twice.

    tokens: of the responses of all the domain's samples.
    """
    taken: list[int] = []
    while len(taken) < budget.samples(tokens[taken]):
        chunk = list(islice(order, BUDGET_CHECK))
        if not chunk:
            return taken
        taken += chunk
    return taken[: budget.samples(tokens[taken])]


def _sort_keys(values: np.ndarray, end: str) -> np.ndarray:
    """Numbers whose lowest are the values wanted first.

    The middle k of n are the ranks ⌊n/2⌋ − ⌊k/2⌋ … by (value, place): from the middle outwards, the
    lower neighbour first.
    """
    if end == "lowest":
        return values
    if end == "highest":
        return -values
    ranks = np.empty(len(values))
    ranks[np.argsort(values, kind="stable")] = np.arange(len(values))
    return np.abs(ranks - len(values) // 2 + 0.25)


def lowest(values: np.ndarray, rows: np.ndarray, count: int, highest: bool = False) -> np.ndarray:
    """A mask of the rows that have the `count` lowest values, or highest; of equal ones, those that
    stand first. No sort, and one copy of the rows' values: these may be many.

    rows: a mask, of `count` rows at least.
    """
    if count == 0:
        return np.zeros(len(values), bool)
    chosen = values[rows]
    place = len(chosen) - count if highest else count - 1
    chosen.partition(place)
    last = chosen[place]
    del chosen
    mask = rows & (values > last if highest else values < last)
    equal = np.flatnonzero(rows & (values == last))
    mask[equal[: count - int(mask.sum())]] = True
    return mask
