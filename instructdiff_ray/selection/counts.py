"""What a ranking comes to: samples by fate, tokens, and the spread of values by domain."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from instructdiff_ray.selection.guards import GUARDS
from instructdiff_ray.selection.ranking import PROBABILITY, Ranking
from instructdiff_ray.selection.select import ABOVE, BELOW, EXCLUDED, NOT_TOP, SELECTED
from instructdiff_ray.selection.stability import CORE_PROBABILITY

QUANTILES = (5, 25, 50, 75, 95)


def fate_counts(ranking: Ranking) -> dict[str, Any]:
    """Samples below, above and in the learnable band, and selected; of a baseline all are in it."""
    counted = _counted(ranking.fates)
    reasons = _counted(ranking.table["excluded_by"].combine_chunks())
    excluded: dict[str, Any] = {
        "excluded": counted[EXCLUDED],
        "excluded_by": dict(sorted(reasons.items())),
    }
    return {
        "below_band": counted[BELOW],
        "above_band": counted[ABOVE],
        "in_band": counted[NOT_TOP] + counted[SELECTED] + counted[EXCLUDED],
        **(excluded if counted[EXCLUDED] else {}),
        "selected": counted[SELECTED],
    }


def _counted(column: pa.Array) -> Counter[str]:
    """How often each value stands in a column; nulls are not counted."""
    counts = pc.value_counts(column.drop_null()).to_pylist()
    return Counter({count["values"]: count["counts"] for count in counts})


def guard_counts(ranking: Ranking) -> dict[str, dict[str, Any]]:
    """For each guard: its limits by domain, None where a domain has none, and the selected samples
    above them where it is not in force."""
    table = ranking.table
    domain = table["domain"].combine_chunks()
    selected = pc.equal(ranking.fates, SELECTED).to_numpy(zero_copy_only=False)
    counts = {}
    for name in ranking.inputs.guards:
        by_domain = {key: limits[name] for key, limits in ranking.limits.items()}
        limits = np.array([by_domain.get(key, np.inf) for key in domain.dictionary.to_pylist()])
        above = table[GUARDS[name].measure].to_numpy() > limits[domain.indices.to_numpy()]
        counts[name] = {
            "limits": {key: x if np.isfinite(x) else None for key, x in by_domain.items()},
            "selected_above_limit": int((above & selected).sum()),
        }
    return counts


def stability_counts(ranking: Ranking) -> dict[str, Any]:
    """What `summary.json` says of the stability of a ranking by several calibrations: of all, and
    of each domain under `domains`."""
    domain = ranking.table["domain"].combine_chunks()
    core = ranking.table[PROBABILITY.name].to_numpy() >= CORE_PROBABILITY
    sizes = np.bincount(domain.indices.to_numpy()[core], minlength=len(domain.dictionary))
    counts = dict(zip(domain.dictionary.to_pylist(), sizes.tolist(), strict=True))
    counts[""] = int(core.sum())
    figures = {
        name: {**asdict(stability), "stable_core": counts[name]}
        for name, stability in ranking.stability.items()
    }
    return {"repeats": len(ranking.inputs.repeats), **figures.pop(""), "domains": figures}


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
