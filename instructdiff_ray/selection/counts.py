"""What a ranking comes to: samples by fate, tokens, and the spread of values by domain."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from instructdiff_ray.selection.ranking import Ranking
from instructdiff_ray.selection.select import ABOVE, BELOW, EXCLUDED, NOT_TOP, SELECTED

QUANTILES = (5, 25, 50, 75, 95)


def fate_counts(ranking: Ranking) -> dict[str, int]:
    """Samples below, above and in the learnable band, and selected; of a baseline all are in it."""
    counted = Counter(
        {v["values"]: v["counts"] for v in pc.value_counts(ranking.fates).to_pylist()}
    )
    return {
        "below_band": counted[BELOW],
        "above_band": counted[ABOVE],
        "in_band": counted[NOT_TOP] + counted[SELECTED] + counted[EXCLUDED],
        **({"excluded": counted[EXCLUDED]} if counted[EXCLUDED] else {}),
        "selected": counted[SELECTED],
    }


def token_counts(ranking: Ranking) -> dict[str, int]:
    """Response tokens of the pool and of the selection."""
    tokens = ranking.table["response_tokens"]
    chosen = tokens.filter(pc.equal(ranking.table["fate"].cast(pa.string()), SELECTED))
    return {
        "response_tokens": pc.sum(tokens).as_py(),
        "selected_response_tokens": pc.sum(chosen).as_py() or 0,
    }


def scored_counts(ranking: Ranking) -> dict[str, Any]:
    """`rejected` and `pool`, where samples that could not be scored count as the former."""
    counts = ranking.pool.counts
    rejected = Counter(counts["rejected"]) + Counter(ranking.rejected["reason"].to_pylist())
    return {"rejected": dict(sorted(rejected.items())), "pool": ranking.table.num_rows}


def by_domain(ranking: Ranking) -> dict[str, dict[str, Any]]:
    """For each domain: samples, how many are selected, their response tokens, and quantiles of ΔNLL
    and ΔH (nats) or of a baseline's value."""
    domain = ranking.table["domain"].combine_chunks()
    codes = domain.indices.to_numpy()
    selected = pc.equal(ranking.fates, SELECTED).to_numpy(zero_copy_only=False)
    table = {}
    for code, name in sorted(enumerate(domain.dictionary.to_pylist()), key=lambda item: item[1]):
        rows = codes == code
        if rows.any():
            table[name] = {
                "pool": int(rows.sum()),
                "selected": int(selected[rows].sum()),
                **{
                    column: _quantiles(ranking.table[column].to_numpy()[rows])
                    for column in ranking.inputs.measures
                },
            }
    return table


def _quantiles(values: np.ndarray) -> dict[str, float | None]:
    """Of those that are finite; None where none is."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return {f"p{q:02d}": None for q in QUANTILES}
    points = np.percentile(finite, QUANTILES)
    return {f"p{q:02d}": float(point) for q, point in zip(QUANTILES, points, strict=True)}
