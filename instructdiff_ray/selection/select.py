"""Select: Algorithm 1's filter and ranking, exact and deterministic. A pure function of columns.

Within each domain of N samples: order by (ΔNLL, sample_id), reject the first and the last ⌊γN⌋;
order what is left, the learnable band, by (ΔH, sample_id) and keep the first max(1, ⌊βN⌋). A
baseline has no filter and ranks by another value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Measured:
    """What is known of N samples, in the order of sample_id, by which ties are settled.

    domains: a number for each domain, from 0 on; tokens: of the response; values: by which samples
    are ranked; shift: ΔNLL or ΔPPL, what the filter cuts by, None: no filter; barred: never to be
    selected. values and shift are finite.
    """

    domains: np.ndarray
    tokens: np.ndarray
    values: np.ndarray
    shift: np.ndarray | None
    barred: np.ndarray | None


def select(rows: Measured, end: str | None, configs: Sequence[SelectConfig]) -> np.ndarray:
    """The fate of each sample, as its number in FATES: int8 [N].

    end: of the values: lowest, middle or highest; None: as each domain's `entropy` says. configs:
    by domain number. Raises ValueError where a value is not finite.
    """
    for column in (rows.values, rows.shift):
        if column is not None and not np.isfinite(column).all():
            raise ValueError("scores are not finite")
    fates = np.full(len(rows.domains), FATES.index(NOT_TOP), np.int8)
    for domain in np.unique(rows.domains):
        config = configs[domain]
        own = np.flatnonzero(rows.domains == domain)
        band = own
        if rows.shift is not None:
            shift, cut = rows.shift[own], floor_share(config.reject_ratio, len(own))
            below = _lowest(shift, cut)
            above = _lowest(-shift[::-1], cut)[::-1]
            band = own[~(below | above)]
            fates[own[below]] = FATES.index(BELOW)
            fates[own[above]] = FATES.index(ABOVE)
        if rows.barred is not None:
            fates[band[rows.barred[band]]] = FATES.index(EXCLUDED)
            band = band[~rows.barred[band]]
        keys = sort_keys(rows.values[band], end or config.entropy)
        tokens = rows.tokens[band]
        if config.budget == "tokens":
            tokens = tokens[np.argsort(keys, kind="stable")]
        count = sample_count(rows.tokens[own], tokens, config)
        chosen = _lowest(keys, min(count, len(band)))
        fates[band[chosen]] = FATES.index(SELECTED)
    return fates


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
