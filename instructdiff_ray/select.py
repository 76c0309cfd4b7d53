"""Select: Algorithm 1's filter and ranking, exact and deterministic. A pure function of columns.

Within each domain of N samples: order by (ΔNLL, sample_id), reject the first and the last ⌊γN⌋;
order what is left, the learnable band, by (ΔH, sample_id) and keep the first max(1, ⌊βN⌋).
"""

from __future__ import annotations

import numpy as np

from instructdiff_ray.config import SelectConfig
from instructdiff_ray.sampling import floor_share

SELECTED, BELOW, ABOVE, NOT_TOP = "selected", "below_band", "above_band", "not_top"


def select(
    sample_ids: np.ndarray,
    domains: np.ndarray,
    delta_nll: np.ndarray,
    delta_entropy: np.ndarray,
    config: SelectConfig,
) -> np.ndarray:
    """The fate of each sample: selected | below_band | above_band | not_top.

    All arrays are [N] and aligned; delta_nll = NLL_cal − NLL_base, delta_entropy = H_base − H_cal,
    finite, in nats. Raises ValueError that names samples where one is not finite.
    """
    finite = np.isfinite(delta_nll) & np.isfinite(delta_entropy)
    if not finite.all():
        raise ValueError(f"scores are not finite, first of {sample_ids[~finite][:5].tolist()}")
    fates = np.full(len(sample_ids), NOT_TOP, dtype=object)
    for domain in np.unique(domains):
        rows = np.flatnonzero(domains == domain)
        cut = floor_share(config.reject_ratio, len(rows))
        by_nll = rows[np.lexsort((sample_ids[rows], delta_nll[rows]))]
        band = by_nll[cut : len(rows) - cut]
        by_entropy = band[np.lexsort((sample_ids[band], delta_entropy[band]))]
        fates[by_nll[:cut]] = BELOW
        fates[by_nll[len(rows) - cut :]] = ABOVE
        fates[by_entropy[: max(1, floor_share(config.ratio, len(rows)))]] = SELECTED
    return fates
