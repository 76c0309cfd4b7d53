"""The rows of a pool, for tests that look at all of them."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from instructdiff_ray.pool.dataset import read_pool, stream
from instructdiff_ray.pool.pool import REJECTS_FILE, ROWS, Pool
from instructdiff_ray.scoring.spec import ScoreTable


def samples_table(pool: Pool, columns: list[str] | None = None) -> pa.Table:
    """These columns of all samples, in source order."""
    dataset = read_pool(pool, columns or ROWS.names)
    dataset.context.execution_options.preserve_order = True
    return pa.concat_tables(stream(dataset, "read pool"))


def samples(pool: Pool) -> list[dict[str, Any]]:
    return samples_table(pool).to_pylist()


def rejects(pool: Pool) -> list[dict[str, Any]]:
    return pool.folder.read_table(REJECTS_FILE).to_pylist()


def scores_table(scores: ScoreTable) -> pa.Table:
    """All columns of the scores, in the order of the pool's index."""
    columns = ["sample_id", "response_tokens", *scores.measures, "reason", "detail"]
    return pa.concat_tables(scores.read(columns))
