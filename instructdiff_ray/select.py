"""Select: Algorithm 1's filter and ranking, exact and deterministic. A pure function of columns.

Within each domain of N samples: order by (ΔNLL, sample_id), reject the first and the last ⌊γN⌋;
order what is left, the learnable band, by (ΔH, sample_id) and keep the first max(1, ⌊βN⌋). A
baseline has no filter and ranks by another value.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from instructdiff_ray.errors import require
from instructdiff_ray.sampling import floor_share

# `excluded`: in the band, and by an option or the strategy's own rule never to be selected.
FATES = SELECTED, BELOW, ABOVE, NOT_TOP, EXCLUDED = (
    "selected",
    "below_band",
    "above_band",
    "not_top",
    "excluded",
)


@dataclass
class SelectConfig:
    """How the pool is filtered and ranked.

    ratio: β, share of the pool that is selected.
    reject_ratio: γ, share of the pool that is cut at each end of ΔNLL; 0 switches the filter off.
    budget: what the ratio is a share of: `samples` (the paper), or response `tokens` (its authors'
        code), where the samples that are first in rank are taken until they hold that many.
    min_samples, max_samples: of each domain, whatever the ratio says.
    entropy: which end of ΔH, of what the filter leaves: lowest (the method), middle or highest.
    filter: what is cut at both ends: `nll` (ΔNLL, the method) or `ppl` (ΔPPL).
    exclude_warmup: select no sample that the first calibrated model was trained on; a baseline has
        none.
    exclude_mismatched: select no sample whose response is no likelier with its prompt than without
        (IFD ≥ 1); costs one more pass of the base model.
    """

    ratio: float = 0.1
    reject_ratio: float = 0.1
    budget: str = "samples"
    min_samples: int | None = None
    max_samples: int | None = None
    entropy: str = "lowest"
    filter: str = "nll"
    exclude_warmup: bool = False
    exclude_mismatched: bool = False

    def __post_init__(self) -> None:
        require(0 < self.ratio <= 1, f"select.ratio={self.ratio} must be in (0, 1]")
        require(
            0 <= self.reject_ratio < 0.5,
            f"select.reject_ratio={self.reject_ratio} must be in [0, 0.5)",
        )
        for name, known in (
            ("budget", ("samples", "tokens")),
            ("entropy", ("lowest", "middle", "highest")),
            ("filter", ("nll", "ppl")),
        ):
            value = getattr(self, name)
            require(value in known, f"select.{name}={value} is not known; use {' or '.join(known)}")
        low, high = self.min_samples, self.max_samples
        require(low is None or low >= 1, f"select.min_samples={low} must be 1 or more")
        require(high is None or high >= 1, f"select.max_samples={high} must be 1 or more")
        require(
            low is None or high is None or low <= high,
            f"select.min_samples={low} is more than select.max_samples={high}",
        )

    def check_room(self) -> None:
        """Raises UserError where the filter, if there is one, leaves less than the ratio."""
        room = 1 - 2 * self.reject_ratio
        require(
            # 1 − 2γ is rounded: γ = 0.45 with β = 0.1 is exact on paper and must pass.
            self.ratio <= room or math.isclose(self.ratio, room),
            f"select.ratio={self.ratio} is more than select.reject_ratio={self.reject_ratio} leaves"
            f" ({room:g} of the pool); lower one of them",
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
