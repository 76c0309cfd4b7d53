"""Select: Algorithm 1's filter and ranking, exact and deterministic. A pure function of columns.

Within each domain of N samples: order by (ΔNLL, sample_id), reject the first and the last ⌊γN⌋;
order what is left, the learnable band, by (ΔH, sample_id) and keep the first max(1, ⌊βN⌋). A
baseline has no filter and ranks by another value.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from instructdiff_ray.config.selection import SelectConfig
from instructdiff_ray.pool.sampling import floor_share

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


def select(candidates: Candidates, end: str | None, configs: Sequence[SelectConfig]) -> np.ndarray:
    """The fate of each sample, as its number in FATES: int8 [N].

    end: of the values: lowest, middle or highest; None: as each domain's `entropy` says. configs:
    by domain number. Raises ValueError where a value is not finite.
    """
    _check_finite(candidates)
    fates = np.full(len(candidates.domains), FATES.index(NOT_TOP), np.int8)
    for domain in np.unique(candidates.domains):
        config = configs[domain]
        rows = np.flatnonzero(candidates.domains == domain)
        band = rows
        if candidates.filter_values is not None:
            change, cut = (
                candidates.filter_values[rows],
                floor_share(config.reject_ratio, len(rows)),
            )
            below = _lowest(change, cut)
            above = _lowest(-change[::-1], cut)[::-1]
            band = rows[~(below | above)]
            fates[rows[below]] = FATES.index(BELOW)
            fates[rows[above]] = FATES.index(ABOVE)
        decided = candidates.decided[band]
        fates[band[decided >= 0]] = decided[decided >= 0]
        band = band[decided < 0]
        keys = sort_keys(candidates.values[band], end or config.entropy)
        tokens = candidates.tokens[band]
        if config.budget == "tokens":
            tokens = tokens[np.argsort(keys, kind="stable")]
        count = sample_count(candidates.tokens[rows], tokens, config)
        fates[band[_lowest(keys, min(count, len(band)))]] = FATES.index(SELECTED)
    return fates


def _check_finite(candidates: Candidates) -> None:
    finite = np.isfinite(candidates.values) | (candidates.decided >= 0)
    if candidates.filter_values is not None:
        finite &= np.isfinite(candidates.filter_values)
    if not finite.all():
        raise ValueError("scores are not finite")


def take_within_budget(order: Iterator[int], tokens: np.ndarray, config: SelectConfig) -> list[int]:
    """Positions as they come, until a domain's budget is full; what comes twice counts twice.

    tokens: of the responses of all the domain's samples.
    """
    taken: list[int] = []
    while chunk := list(islice(order, BUDGET_CHECK)):
        taken += chunk
        if len(taken) >= (count := sample_count(tokens, tokens[taken], config)):
            return taken[:count]
    return taken


def sort_keys(values: np.ndarray, end: str) -> np.ndarray:
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


def sample_count(pool_tokens: np.ndarray, tokens: np.ndarray, config: SelectConfig) -> int:
    """How many samples the budget buys. pool_tokens: of all the domain's samples, in any order;
    tokens: of the candidates, those wanted first first."""
    if config.budget == "samples":
        count = floor_share(config.ratio, len(pool_tokens))
    else:
        wanted = floor_share(config.ratio, int(pool_tokens.sum()))
        count = int(np.searchsorted(np.cumsum(tokens, dtype=np.int64), wanted)) + 1
    most = len(pool_tokens) if config.max_samples is None else config.max_samples
    return max(config.min_samples or 1, min(count, most))


def _lowest(values: np.ndarray, count: int) -> np.ndarray:
    """A mask of the `count` lowest; of equal ones, those that stand first. No sort of them all."""
    if count == 0:
        return np.zeros(len(values), bool)
    last = np.partition(values, count - 1)[count - 1]
    mask = np.asarray(values < last)
    mask[np.flatnonzero(values == last)[: count - int(mask.sum())]] = True
    return mask
