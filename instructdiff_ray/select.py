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

    All arrays are [N], in the order of sample_id: so a stable sort settles ties by it. domains:
    any number for each domain; delta_nll = NLL_cal − NLL_base, delta_entropy = H_base − H_cal,
    finite, in nats. Raises ValueError where one is not finite.
    """
    if not (np.isfinite(delta_nll).all() and np.isfinite(delta_entropy).all()):
        raise ValueError("scores are not finite")
    fates = np.full(len(domains), FATES.index(NOT_TOP), np.int8)
    for domain in np.unique(domains):
        rows = np.flatnonzero(domains == domain)
        cut = floor_share(config.reject_ratio, len(rows))
        by_nll = rows[np.argsort(delta_nll[rows], kind="stable")]
        band = np.sort(by_nll[cut : len(rows) - cut])
        by_entropy = band[np.argsort(delta_entropy[band], kind="stable")]
        fates[by_nll[:cut]] = FATES.index(BELOW)
        fates[by_nll[len(rows) - cut :]] = FATES.index(ABOVE)
        chosen = by_entropy[: max(1, floor_share(config.ratio, len(rows)))]
        fates[chosen] = FATES.index(SELECTED)
    return fates
