"""The rows of a pool as Ray datasets, and their blocks as a stream."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
from ray.data.exceptions import ExecutionTimeoutError
from ray.exceptions import RayError

from instructdiff_ray.errors import user_error_in
from instructdiff_ray.pool.partition import among, id_array
from instructdiff_ray.pool.pool import Pool
from instructdiff_ray.storage.filesystem import Folder


class KeepIds:
    """Keeps the rows whose sample_id is among `ids` (a reference to sorted ids)."""

    def __init__(self, ids: ray.ObjectRef) -> None:
        self.ids = ids

    def __call__(self, batch: pa.Table) -> pa.Table:
        return batch.filter(pa.array(among(id_array(batch), ray.get(self.ids))))


def pool_rows(pool: Pool, sample_ids: Iterable[str], columns: list[str]) -> Iterator[pa.Table]:
    """These rows of the pool, in source order, streamed: filtered where they are read."""
    ids = ray.put(np.array(sorted(sample_ids), dtype="S"))
    dataset = read_pool(pool, columns).map_batches(
        KeepIds(ids), batch_size=None, batch_format="pyarrow"
    )
    dataset.context.execution_options.preserve_order = True
    for table in stream(dataset):
        if table.num_rows:
            yield table.select(columns)


def read_pool(pool: Pool, columns: list[str]) -> ray.data.Dataset:
    """The pool's parts as a Ray dataset, in source order where order is preserved."""
    items = [{"part": name} for name in pool.parts]
    read = partial(read_part, folder=pool.folder, columns=columns)
    return ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        read, batch_size=1
    )


def read_part(batch: dict[str, Any], folder: Folder, columns: list[str]) -> pa.Table:
    """One part, of a few thousand rows. Ray's own reader starts dozens of actors to look into
    footers first, which takes longer than these parts take to read."""
    return folder.read_table(str(batch["part"][0]), columns)


def stream(dataset: ray.data.Dataset) -> Iterator[pa.Table]:
    """The dataset's blocks as they are made; the driver holds one at a time.

    A UserError that a worker raised, or the end of a machine's disk or memory, is a UserError here.
    """
    try:
        for table in dataset.iter_batches(
            batch_size=None, batch_format="pyarrow", prefetch_batches=0
        ):
            assert isinstance(table, pa.Table)
            yield table
    except (RayError, ExecutionTimeoutError) as error:
        if user_error := user_error_in(error):
            raise user_error from error
        raise
