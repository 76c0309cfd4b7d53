"""What a ranking comes to: samples by fate, tokens, and the spread of values by domain."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from instructdiff_ray.selection.budgets import SAMPLES
from instructdiff_ray.selection.guards import GUARDS
from instructdiff_ray.selection.ranking import PROBABILITY, Ranking
from instructdiff_ray.selection.select import ABOVE, BELOW, EXCLUDED, NOT_TOP, SELECTED
from instructdiff_ray.selection.stability import CORE_PROBABILITY

QUANTILES = (5, 25, 50, 75, 95)


def fate_counts(ranking: Ranking) -> dict[str, Any]:
    """Samples below, above and in the learnable band, and selected; of a baseline all are in it."""
    counted = _counted(ranking.table["fate"])
    reasons = _counted(ranking.table["excluded_by"])
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


def _counted(column: pa.ChunkedArray) -> Counter[str]:
    """How often each value stands in a column; nulls are not counted."""
    counts = {count["values"]: count["counts"] for count in pc.value_counts(column).to_pylist()}
    counts.pop(None, None)
    return Counter(counts)


def guard_counts(ranking: Ranking) -> dict[str, dict[str, Any]]:
    """For each guard: its limits by domain, None where a domain has none, and the selected samples
    above them where it is not in force."""
    selected, above = ranking.has_fate(SELECTED), Counter[str]()
    for domain, rows in ranking.by_domain():
        for name in ranking.inputs.guards:
            values = ranking.table[GUARDS[name].measure].to_numpy()[rows & selected]
            above[name] += int((values > ranking.limits[domain][name]).sum())
    return {
        name: {
            "limits": {
                domain: limits[name] if np.isfinite(limits[name]) else None
                for domain, limits in ranking.limits.items()
            },
            "selected_above_limit": above[name],
        }
        for name in ranking.inputs.guards
    }


def stability_counts(ranking: Ranking) -> dict[str, Any]:
    """What `summary.json` says of the stability of a ranking by several calibrations: of all, and
    of each domain under `domains`."""
    core = ranking.table[PROBABILITY.name].to_numpy() >= CORE_PROBABILITY
    counts = {name: int((core & rows).sum()) for name, rows in ranking.by_domain()}
    counts[""] = int(core.sum())
    figures = {
        name: {**asdict(stability), "stable_core": counts[name]}
        for name, stability in ranking.stability.items()
    }
    return {"repeats": len(ranking.inputs.repeats), **figures.pop(""), "domains": figures}


def mixture_counts(ranking: Ranking) -> dict[str, Any]:
    """What `summary.json` says of a mixture; empty where none was wanted.

    budget: samples or response tokens, the unit of all figures. domains: for each its share of the
    selection as wanted and as it came, both in figures too, and how much could have been selected.
    """
    shares = {name: b.share for name, b in ranking.budgets.items() if b.share is not None}
    if not shares:
        return {}
    (unit,) = {ranking.budgets[name].unit for name in shares}  # one budget is shared out
    tokens = ranking.table["response_tokens"].to_numpy()
    selected, not_top = ranking.has_fate(SELECTED), ranking.has_fate(NOT_TOP)

    def size(rows: np.ndarray) -> int:
        if unit == SAMPLES:
            return int(rows.sum())
        return int(np.sum(tokens, where=rows, dtype=np.int64))

    came, available = dict.fromkeys(shares, 0), dict.fromkeys(shares, 0)
    for name, rows in ranking.by_domain():
        came[name], available[name] = size(rows & selected), size(rows & (selected | not_top))
    domains = {
        name: {
            "wanted_share": float(share),
            "came_share": came[name] / max(1, sum(came.values())),
            "wanted": ranking.budgets[name].size,
            "came": came[name],
            "available": available[name],
        }
        for name, share in sorted(shares.items())
    }
    return {"budget": unit, "domains": domains}


def token_counts(ranking: Ranking) -> dict[str, int]:
    """Tokens of the pool, and response tokens of the pool and of the selection."""
    tokens, selected = ranking.table["response_tokens"].to_numpy(), ranking.has_fate(SELECTED)
    indexes = ranking.pool.index(["tokens"])
    return {
        "tokens": sum(int(np.sum(index["tokens"].to_numpy(), dtype=np.int64)) for index in indexes),
        "response_tokens": int(np.sum(tokens, dtype=np.int64)),
        "selected_response_tokens": int(np.sum(tokens, where=selected, dtype=np.int64)),
    }


def scored_counts(ranking: Ranking) -> dict[str, Any]:
    """`rejected` and `pool`, where samples that could not be scored count as the former."""
    counts = ranking.pool.counts
    rejected = Counter(counts["rejected"]) + Counter(ranking.rejected["reason"].to_pylist())
    return {"rejected": dict(sorted(rejected.items())), "pool": ranking.table.num_rows}


def by_domain(ranking: Ranking) -> dict[str, dict[str, Any]]:
    """For each domain: samples, how many are selected, and quantiles of ΔNLL
    and ΔH (nats) or of a baseline's value."""
    selected, domains = ranking.has_fate(SELECTED), {}
    for name, rows in ranking.by_domain():
        domains[name] = {
            "pool": int(rows.sum()),
            "selected": int((rows & selected).sum()),
            **{
                column: _quantiles(ranking.table[column].to_numpy(), rows)
                for column in ranking.inputs.measures
            },
        }
    return dict(sorted(domains.items()))


def _quantiles(values: np.ndarray, rows: np.ndarray) -> dict[str, float | None]:
    """Of those of the rows that are finite; None where none is."""
    finite = values[rows & np.isfinite(values)]
    if not len(finite):
        return {f"p{q:02d}": None for q in QUANTILES}
    points = np.percentile(finite, QUANTILES, overwrite_input=True)
    return {f"p{q:02d}": float(point) for q, point in zip(QUANTILES, points, strict=True)}
