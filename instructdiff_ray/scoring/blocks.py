"""A block on its way through the scorer: its columns of tokens before, of scores after.

Before: sample_id, and for each encoding, by its number: input_ids, response (whether each token is
scored), reason and detail; of a sample that can't be encoded the first two are empty, of others the
last two null. After: sample_id, and for each target, by its name: response_tokens, its measures,
and where these are null reason and detail.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from instructdiff_ray.models.template import Encoded
from instructdiff_ray.sample import Reject

# Reasons of samples that could not be scored.
KILLS_SCORER, NOT_FINITE, OUT_OF_MEMORY = "kills_scorer", "not_finite", "out_of_memory"
NOTHING = Encoded([], [], [], False)


def encoded_columns(encoding: int, encoded: Sequence[Encoded | Reject]) -> dict[str, pa.Array]:
    """Samples in one encoding. All were encoded at ingest; in another form, or by another
    tokenizer, some may not be."""
    rejects = [item if isinstance(item, Reject) else None for item in encoded]
    tokens = [item if isinstance(item, Encoded) else NOTHING for item in encoded]
    return {
        f"{encoding}_input_ids": pa.array([e.input_ids for e in tokens], pa.list_(pa.int32())),
        f"{encoding}_response": pa.array([e.response for e in tokens], pa.list_(pa.bool_())),
        f"{encoding}_reason": pa.array([r and r.reason for r in rejects], pa.string()),
        f"{encoding}_detail": pa.array([r and r.detail for r in rejects], pa.string()),
    }


def token_lists(block: pa.Table, encoding: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """input_ids and response of each row."""
    return as_lists(block[f"{encoding}_input_ids"]), as_lists(block[f"{encoding}_response"])


def score_columns(
    block: pa.Table,
    encoding: int,
    target: str,
    values: Mapping[str, np.ndarray],
    rejects: Mapping[int, Reject],
) -> dict[str, pa.Array]:
    """The columns of one target. values: by measure, [rows]; what is not finite is a reject.

    rejects: rows that are known not to be scored, besides those that were not encoded.
    """
    bad = np.array(~np.isfinite([*values.values()]).all(axis=0), dtype=bool)
    bad[list(rejects)] = True
    line = f"scores under the {target} model are not finite; cluster.precision=fp32 may help"
    not_finite = Reject(NOT_FINITE, line)
    reasons, details = (block[f"{encoding}_{name}"].to_pylist() for name in ("reason", "detail"))
    for row in np.flatnonzero(bad).tolist():
        if reasons[row] is None:
            reject = rejects.get(row, not_finite)
            reasons[row], details[row] = reject.reason, reject.detail
    scored = [np.count_nonzero(response) for response in as_lists(block[f"{encoding}_response"])]
    columns = {
        "response_tokens": pa.array(scored, pa.int32()),
        **{measure: pa.array(column, mask=bad) for measure, column in values.items()},
        "reason": pa.array(reasons, pa.string()),
        "detail": pa.array(details, pa.string()),
    }
    return {f"{target}_{name}": column for name, column in columns.items()}


def as_lists(column: pa.ChunkedArray) -> list[np.ndarray]:
    """A column of lists, each an array of its own: no Python object for each token."""
    lists = column.combine_chunks()
    values = lists.flatten().to_numpy(zero_copy_only=False)
    return np.split(values, np.cumsum(pc.list_value_length(lists))[:-1])
