"""Rows of formats that store columns: Parquet, and Arrow's IPC."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from instructdiff_ray.pool.source import (
    FileRange,
    RawRow,
    SourceFile,
    check_damaged,
    in_one_line,
    open_source,
    row_text,
)
from instructdiff_ray.storage.filesystem import open_filesystem

IPC_FILE = b"ARROW1"  # how an IPC file begins, and a stream does not


def read_parquet(source: FileRange) -> Iterator[RawRow]:
    """The rows of the row groups that begin in the range."""
    fs, path = open_filesystem(source.file.path)
    with fs.open_input_file(path) as stream:
        try:
            file = pq.ParquetFile(stream)
        except pa.ArrowInvalid:
            if source.start:  # whoever reads the beginning says so
                return
            raise
        groups, number = _row_groups(file, source)
        for batch in file.iter_batches(batch_size=1024, row_groups=groups) if groups else ():
            for row in _batch_rows(batch, number + 1):
                number += 1
                yield row


def row_groups(file: SourceFile) -> list[tuple[FileRange, int]]:
    """The row groups of a Parquet file, each with its rows, by the footer alone; none of a damaged
    file. UserError where it can't be read."""
    fs, path = open_filesystem(file.path)
    try:
        metadata = pq.read_metadata(path, filesystem=fs)
    except (OSError, pa.ArrowException) as error:
        check_damaged(file, error)
        return []
    groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
    with_columns = [(_begin(group), group.num_rows) for group in groups if group.num_columns]
    return [(FileRange(file, begin, begin + 1), rows) for begin, rows in with_columns]


def read_arrow(source: FileRange) -> Iterator[RawRow]:
    """Arrow's IPC stream, as `datasets` saves it, or IPC file, as others call it."""
    with open_source(source.file) as stream:
        if stream.peek(len(IPC_FILE)).startswith(IPC_FILE):
            file = pa.ipc.open_file(pa.BufferReader(stream.read()))
            batches = (file.get_batch(number) for number in range(file.num_record_batches))
        else:
            batches = iter(pa.ipc.open_stream(stream))
        number = 0
        for batch in batches:
            for start in range(0, batch.num_rows, 1024):
                rows = batch.slice(start, 1024)
                yield from _batch_rows(rows, number + 1)
                number += rows.num_rows


def _row_groups(file: pq.ParquetFile, source: FileRange) -> tuple[list[int], int]:
    """The row groups that begin in the range, and how many rows stand before them."""
    groups, before = [], 0
    for number in range(file.num_row_groups):
        group = file.metadata.row_group(number)
        begin = _begin(group) if group.num_columns else 0
        if begin < source.start:
            before += group.num_rows
        elif source.end is None or begin < source.end:
            groups.append(number)
    return groups, before


def _begin(group: pq.RowGroupMetaData) -> int:
    column = group.column(0)
    return int(column.dictionary_page_offset or column.data_page_offset)


def _batch_rows(batch: pa.RecordBatch, first: int) -> list[RawRow]:
    """Rows of a batch; one that holds what Python can't (text that is no UTF-8, a date in the year
    300000) is a reject."""
    try:
        return [RawRow(line, row_text(row)) for line, row in enumerate(batch.to_pylist(), first)]
    except (ValueError, OverflowError) as error:
        if batch.num_rows == 1:
            return [RawRow(first, "", "invalid_value", in_one_line(error))]
    singles = (batch.slice(number, 1) for number in range(batch.num_rows))
    return [row for line, single in enumerate(singles, first) for row in _batch_rows(single, line)]
