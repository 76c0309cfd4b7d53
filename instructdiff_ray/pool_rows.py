"""Rows of the pool by sample_id, in source order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
import ray
import ray.data

from instructdiff_ray.ingest import Pool


class KeepIds:
    """Keeps the rows whose sample_id is among `ids` (a reference to sorted ids)."""

    def __init__(self, ids: ray.ObjectRef) -> None:
        self.ids = ids

    def __call__(self, batch: pa.Table) -> pa.Table:
        return batch.filter(pa.array(np.isin(id_array(batch), ray.get(self.ids))))


def id_array(table: pa.Table) -> np.ndarray:
    """sample_id as fixed-width bytes, which NumPy sorts and searches quickly."""
    return table["sample_id"].to_numpy().astype("S")


def pool_rows(pool: Pool, sample_ids: Iterable[str], columns: list[str]) -> Iterator[pa.Table]:
    """These rows of the pool, in source order, streamed: filtered where they are read."""
    ids = ray.put(np.array(sorted(sample_ids), dtype="S"))
    dataset = read_pool(pool, columns).map_batches(
        KeepIds(ids), batch_size=None, batch_format="pyarrow"
    )
    dataset.context.execution_options.preserve_order = True
    for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
        if table.num_rows:
            yield table.select(columns)


def read_pool(pool: Pool, columns: list[str]) -> ray.data.Dataset:
    """The pool's parts as a Ray dataset, in source order where order is preserved."""
    paths = [pool.folder.sub(name).path for name in pool.parts]
    return ray.data.read_parquet(paths, columns=columns)
