"""The pool: all valid samples of the source files, as an artifact, and how its rows are read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
from ray.data.exceptions import ExecutionTimeoutError
from ray.exceptions import RayError

from instructdiff_ray.buckets import id_array
from instructdiff_ray.errors import UserError, user_error_in
from instructdiff_ray.storage import Finished, Folder

PARTS = pa.list_(pa.struct([("kind", pa.string()), ("text", pa.string())]))
POOL = pa.schema(
    [
        ("sample_id", pa.string()),
        ("domain", pa.string()),
        ("parts", PARTS),
        ("tokens", pa.int32()),
        ("response_tokens", pa.int32()),
        ("instruction_tokens", pa.int32()),
        ("truncated", pa.bool_()),
        ("source", pa.large_string()),
        ("file", pa.string()),
        ("line", pa.int64()),
    ]
)
REJECTS = pa.schema(
    [
        ("file", pa.string()),
        ("line", pa.int64()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("source", pa.large_string()),
    ]
)
# One row a sample, sorted by sample_id: all that the driver needs to sample, align and select. A
# row group holds a bucket. `tokens` counts all that a model sees, `instruction_tokens` the question
# without the template.
INDEX = pa.schema(
    [
        ("sample_id", pa.string()),
        ("domain", pa.dictionary(pa.int32(), pa.string())),
        ("tokens", pa.int32()),
        ("response_tokens", pa.int32()),
        ("instruction_tokens", pa.int32()),
    ]
)


@dataclass(frozen=True)
class Pool:
    """A finished pool.

    folder: holds `index.parquet` and the part files; parts, rejects: their names, in source order.
    digest: hash of all (sample_id, domain), whatever their order: the pool's identity downstream,
        so that moving or reordering files repeats no model's work.
    counts: read, rejected by reason, pool, truncated.
    """

    folder: Folder
    key: str
    digest: str
    parts: list[str]
    rejects: list[str]
    counts: dict[str, Any]

    def index(self, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """The index, or some columns of it, a bucket at a time, in the order of sample_id."""
        return self.folder.read_row_groups("index.parquet", columns)

    def ids(self) -> Iterator[str]:
        """Every sample_id, in order."""
        for table in self.index(["sample_id"]):
            yield from table["sample_id"].to_pylist()

    def __len__(self) -> int:
        return int(self.counts["pool"])


def open_pool(finished: Finished, key: str) -> Pool:
    """The pool of a finished artifact."""
    info = finished.info
    return Pool(
        finished.folder, key, info["digest"], info["parts"], info["rejects"], info["counts"]
    )


class KeepIds:
    """Keeps the rows whose sample_id is among `ids` (a reference to sorted ids)."""

    def __init__(self, ids: ray.ObjectRef) -> None:
        self.ids = ids

    def __call__(self, batch: pa.Table) -> pa.Table:
        return batch.filter(pa.array(among(id_array(batch), ray.get(self.ids))))


def among(values: np.ndarray, ordered: np.ndarray) -> np.ndarray:
    """A mask: which `values` are in `ordered`. It is sorted, so a block costs no sort of it all."""
    if not len(ordered):
        return np.zeros(len(values), dtype=bool)
    places = np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)
    return np.asarray(ordered[places] == values)


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
        if told := user_error_in(error):
            raise told from error
        raise


def check_rejects(pool: Pool, limit: float, more: Mapping[str, int] | None = None) -> None:
    """Raises UserError where more than this share of all rows read was rejected.

    more: rejects of later stages, by reason. Duplicates don't count: nothing is wrong with them.
    """
    rejected = Counter(pool.counts["rejected"]) + Counter(more or {})
    bad = {reason: count for reason, count in rejected.items() if reason != "duplicate"}
    read = pool.counts["read"]
    if sum(bad.values()) > limit * read:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in bad.items())
        raise UserError(
            f"{sum(bad.values()):,} of {read:,} rows were rejected ({reasons}), more than"
            f" data.max_reject_ratio={limit:g}; look at {pool.folder.path}/rejects-*.parquet (and"
            " for what could not be scored at the like in storage/pieces), and raise it if they"
            " may go"
        )
