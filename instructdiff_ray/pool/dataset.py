"""The rows of a pool as Ray datasets, and their blocks as a stream."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data
from ray.data.exceptions import ExecutionTimeoutError
from ray.exceptions import RayError

from instructdiff_ray.errors import user_error_in
from instructdiff_ray.pool.partition import among, id_array
from instructdiff_ray.pool.pool import Pool
from instructdiff_ray.resources import machines_for
from instructdiff_ray.storage.filesystem import Folder


class KeepIds:
    """Keeps the rows whose sample_id is among `ids` (a reference to sorted ids)."""

    def __init__(self, ids: ray.ObjectRef) -> None:
        self.ids = ids

    def __call__(self, batch: pa.Table) -> pa.Table:
        return batch.filter(pa.array(among(id_array(batch), ray.get(self.ids))))


def pool_rows(pool: Pool, sample_ids: np.ndarray, columns: list[str]) -> Iterator[pa.Table]:
    """These rows of the pool, in source order, streamed: filtered where they are read. sample_ids:
    sorted, as `id_array` has them."""
    dataset = read_pool(pool, columns).map_batches(
        KeepIds(ray.put(sample_ids)), batch_size=None, batch_format="pyarrow"
    )
    dataset.context.execution_options.preserve_order = True
    for table in stream(dataset, "read pool"):
        if table.num_rows:
            yield table.select(columns)


def read_pool(pool: Pool, columns: list[str]) -> ray.data.Dataset:
    """The pool's samples as a Ray dataset, in source order where order is preserved."""
    read = partial(
        read_samples,
        folder=pool.folder,
        columns=columns,
        duplicates=ray.put(pool.duplicates()),
        keep_duplicates=pool.keep_duplicates,
    )
    # Ray's own reader starts dozens of actors to look into footers first, which takes longer than
    # these parts take to read.
    items = [{"number": number, "part": name} for number, name in enumerate(pool.parts)]
    return ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        read, batch_size=1
    )


def read_samples(
    batch: dict[str, Any],
    folder: Folder,
    columns: list[str],
    duplicates: ray.ObjectRef,
    keep_duplicates: bool,
) -> pa.Table:
    """The samples of one part; of those that were read before the id is numbered, or they are left
    out."""
    wanted = [*dict.fromkeys([*columns, "sample_id", "reason"])]
    table = folder.read_table(str(batch["part"][0]), wanted)
    keep = np.array(pc.is_null(table["reason"]))
    again = duplicates_in(ray.get(duplicates), int(batch["number"][0]))
    rows = again["row"].to_numpy()
    if keep_duplicates and len(rows):
        ids = table["sample_id"].to_numpy().copy()
        ids[rows] = numbered_ids(again).to_numpy(zero_copy_only=False)
        place = table.column_names.index("sample_id")
        table = table.set_column(place, "sample_id", pa.array(ids, pa.string()))
    elif len(rows):
        keep[rows] = False
    return table.filter(pa.array(keep)).select(columns)


def duplicates_in(duplicates: pa.Table, part: int) -> pa.Table:
    """The rows of DUPLICATES, which are sorted by part, of one part."""
    start, end = np.searchsorted(duplicates["part"].to_numpy(), [part, part + 1])
    return duplicates.slice(start, end - start)


def numbered_ids(duplicates: pa.Table) -> pa.Array:
    """The ids of samples that were read before, each with the number of times: `<id>-1`."""
    repeats = duplicates["repeat"].cast(pa.string())
    return pc.binary_join_element_wise(duplicates["sample_id"], repeats, "-").combine_chunks()


def stream(dataset: ray.data.Dataset, name: str, gpus: float = 0) -> Iterator[pa.Table]:
    """The dataset's blocks as they are made; the driver holds one at a time.

    name: what Ray's dashboard calls it.
    gpus: of each actor that one of its stages has; the other stages may run beside them.
    A UserError that a worker raised, or the end of a machine's disk or memory, is a UserError here.
    """
    dataset.set_name(name)
    dataset.context.execution_options.label_selector = machines_for(gpus)
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
