"""The ranking: one row a sample with its scores under both models and its fate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from instructdiff_ray.config import SelectConfig
from instructdiff_ray.select import ABOVE, BELOW, NOT_TOP, SELECTED, select

QUANTILES = (5, 25, 50, 75, 95)


def rank(index: pa.Table, scores: Mapping[str, pa.Table], config: SelectConfig) -> pa.Table:
    """The columns of `ranking.parquet`, sorted by sample_id.

    index: the pool's; scores: of `base` and `calibrated`, in the order of the index (nats).
    delta_nll = calibrated − base (Eq. 1), delta_entropy = base − calibrated (Eq. 2).
    """
    base, calibrated = scores["base"], scores["calibrated"]
    for table in (base, calibrated):
        assert table["sample_id"].equals(index["sample_id"]), "scores of another pool"
    delta_nll = pc.subtract(calibrated["nll"], base["nll"])
    delta_entropy = pc.subtract(base["entropy"], calibrated["entropy"])
    fates = select(
        index["sample_id"].to_numpy().astype("S"),
        index["domain"].to_numpy(),
        delta_nll.to_numpy(),
        delta_entropy.to_numpy(),
        config,
    )
    return pa.table(
        {
            "sample_id": index["sample_id"],
            "domain": index["domain"].cast(pa.string()),
            "response_tokens": index["response_tokens"],
            "base_nll": base["nll"],
            "base_entropy": base["entropy"],
            "calibrated_nll": calibrated["nll"],
            "calibrated_entropy": calibrated["entropy"],
            "delta_nll": delta_nll,
            "delta_entropy": delta_entropy,
            "fate": pa.array(fates, pa.string()),
        }
    )


def selected_ids(ranking: pa.Table) -> list[str]:
    """The selection's sample ids, sorted."""
    return ranking.filter(pc.equal(ranking["fate"], SELECTED))["sample_id"].to_pylist()


def fate_counts(ranking: pa.Table) -> dict[str, int]:
    """Samples below, above and in the learnable band, and selected."""
    fates = ranking["fate"].to_numpy()
    below, above, rest, selected = (
        int((fates == fate).sum()) for fate in (BELOW, ABOVE, NOT_TOP, SELECTED)
    )
    return {
        "below_band": below,
        "above_band": above,
        "in_band": rest + selected,
        "selected": selected,
    }


def by_domain(ranking: pa.Table) -> dict[str, dict[str, Any]]:
    """For each domain: samples, how many are selected, quantiles of ΔNLL and ΔH (nats)."""
    domains = ranking["domain"].to_numpy()
    fates = ranking["fate"].to_numpy()
    table = {}
    for domain in np.unique(domains):
        rows = domains == domain
        table[str(domain)] = {
            "pool": int(rows.sum()),
            "selected": int((fates[rows] == SELECTED).sum()),
            **{
                name: _quantiles(ranking[name].to_numpy()[rows])
                for name in ("delta_nll", "delta_entropy")
            },
        }
    return table


def _quantiles(values: np.ndarray) -> dict[str, float]:
    points = np.percentile(values, QUANTILES)
    return {f"p{q:02d}": float(point) for q, point in zip(QUANTILES, points, strict=True)}
