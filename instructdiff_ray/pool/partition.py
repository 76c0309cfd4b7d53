"""Rows by sample_id, however many: split by the id's first digits, on the local disk if need be.

A sample_id is a hash in hexadecimal digits, so its first two spread any pool evenly. Sorted one
after the other, the partitions give the rows in the order of their ids, and no more than one is in
memory.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from types import TracebackType

import numpy as np
import pyarrow as pa

PARTITIONS = 64
BUFFER_ROWS = 1 << 19


def id_array(table: pa.Table) -> np.ndarray:
    """sample_id as fixed-width bytes, which NumPy sorts and searches quickly."""
    return table["sample_id"].to_numpy().astype("S")


def id_prefixes(table: pa.Table) -> np.ndarray:
    """The first 16 digits of each sample_id as a number: uint64, in the order of the ids."""
    digits = _digits(id_array(table), 16).astype(np.uint64)
    shifts = np.arange(60, -1, -4, dtype=np.uint64)
    return np.asarray((digits << shifts).sum(axis=1, dtype=np.uint64))


def partition_numbers(table: pa.Table) -> np.ndarray:
    """The partition of each row, 0 to PARTITIONS − 1."""
    digits = _digits(id_array(table), 2)
    return np.asarray((digits[:, 0] * 16 + digits[:, 1]) * PARTITIONS // 256)


def among(values: np.ndarray, ordered: np.ndarray) -> np.ndarray:
    """A mask: which `values` are in `ordered`. It is sorted, so a block costs no sort of it all."""
    if not len(ordered):
        return np.zeros(len(values), dtype=bool)
    places = np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)
    return np.asarray(ordered[places] == values)


def _digits(ids: np.ndarray, count: int) -> np.ndarray:
    """[N, count]: the value of each id's first hexadecimal digits."""
    letters = np.zeros((len(ids), max(count, ids.dtype.itemsize)), np.uint8)
    letters[:, : ids.dtype.itemsize] = ids.view(np.uint8).reshape(len(ids), ids.dtype.itemsize)
    values = letters[:, :count].astype(np.int64)
    return np.where(values >= ord("a"), values - ord("a") + 10, values - ord("0"))


class HashPartitions:
    """A table that is added to in any order and read partition by partition.

    Up to BUFFER_ROWS rows stay in memory; more go to files in the folder for temporary files.
    """

    def __init__(self, schema: pa.Schema) -> None:
        self.schema = schema
        self._buffer: list[pa.Table] = []
        self._buffered = 0
        self._folder: tempfile.TemporaryDirectory | None = None
        self._writers: list[pa.ipc.RecordBatchFileWriter] = []

    def __enter__(self) -> HashPartitions:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        try:
            self._close()
        finally:
            if self._folder:
                self._folder.cleanup()

    def add(self, table: pa.Table) -> None:
        self._buffer.append(table.select(self.schema.names).cast(self.schema))
        self._buffered += table.num_rows
        if self._buffered >= BUFFER_ROWS:
            self._spill()

    def read(self) -> Iterator[pa.Table]:
        """Every partition in turn, empty ones too; its rows are in no order. Ends the adding."""
        rest = self._split()
        self._close()
        for number in range(PARTITIONS):
            tables = [rest[number]]
            if self._folder:
                with pa.memory_map(self._path(number)) as file:
                    tables.append(pa.ipc.open_file(file).read_all())
            yield pa.concat_tables(tables)

    def _close(self) -> None:
        writers, self._writers = self._writers, []
        for writer in writers:
            writer.close()

    def _path(self, number: int) -> str:
        assert self._folder
        return os.path.join(self._folder.name, f"{number}.arrow")

    def _spill(self) -> None:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="instructdiff-")
            self._writers = [
                pa.ipc.new_file(self._path(number), self.schema) for number in range(PARTITIONS)
            ]
        for writer, part in zip(self._writers, self._split(), strict=True):
            writer.write_table(part)

    def _split(self) -> list[pa.Table]:
        table = pa.concat_tables([self.schema.empty_table(), *self._buffer]).combine_chunks()
        self._buffer, self._buffered = [], 0
        numbers = partition_numbers(table)
        order = np.argsort(numbers, kind="stable")
        ends = np.searchsorted(numbers[order], np.arange(PARTITIONS + 1))
        ordered = table.take(order)
        return [
            ordered.slice(start, end - start) for start, end in zip(ends, ends[1:], strict=False)
        ]
