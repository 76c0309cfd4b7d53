"""Select: Algorithm 1's filter and ranking, exact and deterministic. A pure function of columns.

Within each domain of N samples: order by (ΔNLL, sample_id), reject the first and the last ⌊γN⌋;
order what is left, the learnable band, by (ΔH, sample_id) and keep the first max(1, ⌊βN⌋).
"""

from __future__ import annotations

import numpy as np

from instructdiff_ray.config import SelectConfig
from instructdiff_ray.sampling import floor_share

FATES = SELECTED, BELOW, ABOVE, NOT_TOP = "selected", "below_band", "above_band", "not_top"


def select(
    domains: np.ndarray, delta_nll: np.ndarray, delta_entropy: np.ndarray, config: SelectConfig
) -> np.ndarray:
    """The fate of each sample, as its number in FATES: int8 [N].

    All arrays are [N], in the order of sample_id, by which ties are settled. domains: any number
    for each domain; delta_nll = NLL_cal − NLL_base, delta_entropy = H_base − H_cal, finite, in
    nats. Raises ValueError where one is not finite.
    """
    if not (np.isfinite(delta_nll).all() and np.isfinite(delta_entropy).all()):
        raise ValueError("scores are not finite")
    fates = np.full(len(domains), FATES.index(NOT_TOP), np.int8)
    for domain in np.unique(domains):
        rows = np.flatnonzero(domains == domain)
        cut = floor_share(config.reject_ratio, len(rows))
        below = _lowest(delta_nll[rows], cut)
        above = _lowest(-delta_nll[rows][::-1], cut)[::-1]
        band = rows[~(below | above)]
        chosen = _lowest(delta_entropy[band], max(1, floor_share(config.ratio, len(rows))))
        fates[rows[below]] = FATES.index(BELOW)
        fates[rows[above]] = FATES.index(ABOVE)
        fates[band[chosen]] = FATES.index(SELECTED)
    return fates


def _lowest(values: np.ndarray, count: int) -> np.ndarray:
    """A mask of the `count` lowest; of equal ones, those that stand first. No sort of them all."""
    if count == 0:
        return np.zeros(len(values), bool)
    last = np.partition(values, count - 1)[count - 1]
    mask = np.asarray(values < last)
    mask[np.flatnonzero(values == last)[: count - int(mask.sum())]] = True
    return mask
