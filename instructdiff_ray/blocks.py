"""A block on its way through the scorer: its columns of tokens before, of scores after.

Before: sample_id, input_ids, response (whether each token is scored), reason and detail; of a
sample that can't be encoded the first two are empty, of others the last two null. After: sample_id,
response_tokens, and for each role its measures, and where these are null its reason and detail.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from instructdiff_ray.watch import MAX_DEATHS

# Reasons of samples that could not be scored.
KILLS_SCORER, NOT_FINITE, OUT_OF_MEMORY = "kills_scorer", "not_finite", "out_of_memory"


def scores_table(
    block: pa.Table,
    measures: Sequence[str],
    values: Mapping[str, np.ndarray],
    too_large: Mapping[str, set[int]],
) -> pa.Table:
    """values: role → [measures, rows]. One that is not finite is a reject.

    too_large: role → rows that the device's memory does not hold alone; rejects too.
    """
    columns = _identity(block)
    unread = _unread(block)
    for role, found in values.items():
        bad = ~np.isfinite(found).all(axis=0)
        bad[list(too_large[role])] = True
        why = {
            row: unread.get(row) or _why(row, role, too_large[role])
            for row in np.flatnonzero(bad).tolist()
        }
        for name, column in zip(measures, found, strict=True):
            columns[f"{role}_{name}"] = pa.array(column, mask=bad)
        told: list[Any] = [why.get(row, (None, None)) for row in range(len(bad))]
        columns[f"{role}_reason"] = pa.array([reason for reason, _ in told], pa.string())
        columns[f"{role}_detail"] = pa.array([detail for _, detail in told], pa.string())
    return pa.table(columns)


def _unread(block: pa.Table) -> dict[int, tuple[str, str]]:
    """Rows that could not be encoded, and why."""
    told = zip(block["reason"].to_pylist(), block["detail"].to_pylist(), strict=True)
    return {row: why for row, why in enumerate(told) if why[0] is not None}


def _why(row: int, role: str, too_large: set[int]) -> tuple[str, str]:
    if row in too_large:
        return OUT_OF_MEMORY, "the device's memory does not hold this sample alone"
    line = f"scores under the {role} model are not finite; cluster.precision=fp32 may help"
    return NOT_FINITE, line


def lethal_table(one: pa.Table, measures: Sequence[str], roles: Sequence[str]) -> pa.Table:
    """A sample on which the scorer died again and again."""
    columns = _identity(one)
    for role in roles:
        for name in measures:
            columns[f"{role}_{name}"] = pa.array([None], pa.float64())
        columns[f"{role}_reason"] = pa.array([KILLS_SCORER])
        detail = f"the scorer died {MAX_DEATHS} times on this sample alone"
        columns[f"{role}_detail"] = pa.array([detail])
    return pa.table(columns)


def _identity(block: pa.Table) -> dict[str, pa.Array]:
    scored = [np.count_nonzero(response) for response in as_lists(block["response"])]
    return {"sample_id": block["sample_id"], "response_tokens": pa.array(scored, pa.int32())}


def as_lists(column: pa.ChunkedArray) -> list[np.ndarray]:
    """A column of lists, each an array of its own: no Python object for each token."""
    lists = column.combine_chunks()
    values = lists.flatten().to_numpy(zero_copy_only=False)
    return np.split(values, np.cumsum(pc.list_value_length(lists))[:-1])
