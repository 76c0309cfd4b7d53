"""A block on its way through the scorer: its columns of tokens before, of scores after."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from instructdiff_ray.watch import MAX_DEATHS

# Reasons of samples that could not be scored.
KILLS_SCORER, NOT_FINITE, OUT_OF_MEMORY = "kills_scorer", "not_finite", "out_of_memory"


def scores_table(
    block: pa.Table, values: Mapping[str, np.ndarray], too_large: Mapping[str, set[int]]
) -> pa.Table:
    """values: role → [2, rows], NLL and entropy. One that is not finite is a reject.

    too_large: role → rows that the device's memory does not hold alone; rejects too.
    """
    columns = _measures(block)
    for role, (nll, entropy) in values.items():
        nll[list(too_large[role])] = np.nan
        bad = ~(np.isfinite(nll) & np.isfinite(entropy))
        told = [
            _why(row, role, too_large[role]) if b else (None, None) for row, b in enumerate(bad)
        ]
        columns[f"{role}_nll"] = pa.array(nll, mask=bad)
        columns[f"{role}_entropy"] = pa.array(entropy, mask=bad)
        columns[f"{role}_reason"] = pa.array([reason for reason, _ in told], pa.string())
        columns[f"{role}_detail"] = pa.array([detail for _, detail in told], pa.string())
    return pa.table(columns)


def _why(row: int, role: str, too_large: set[int]) -> tuple[str, str]:
    if row in too_large:
        return OUT_OF_MEMORY, "the device's memory does not hold this sample alone"
    line = f"NLL or entropy under the {role} model is not finite; cluster.precision=fp32 may help"
    return NOT_FINITE, line


def lethal_table(one: pa.Table, roles: list[str]) -> pa.Table:
    """A sample on which the scorer died again and again."""
    columns = _measures(one)
    for role in roles:
        for name in ("nll", "entropy"):
            columns[f"{role}_{name}"] = pa.array([None], pa.float64())
        columns[f"{role}_reason"] = pa.array([KILLS_SCORER])
        detail = f"the scorer died {MAX_DEATHS} times on this sample alone"
        columns[f"{role}_detail"] = pa.array([detail])
    return pa.table(columns)


def _measures(block: pa.Table) -> dict[str, pa.Array]:
    scored = [np.count_nonzero(response) for response in as_lists(block["response"])]
    return {"sample_id": block["sample_id"], "response_tokens": pa.array(scored, pa.int32())}


def as_lists(column: pa.ChunkedArray) -> list[np.ndarray]:
    """A column of lists, each an array of its own: no Python object for each token."""
    lists = column.combine_chunks()
    values = lists.flatten().to_numpy(zero_copy_only=False)
    return np.split(values, np.cumsum(pc.list_value_length(lists))[:-1])
