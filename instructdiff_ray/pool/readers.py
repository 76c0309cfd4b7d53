"""Raw files to raw rows: every row with its line.

A row leaves here as the JSON text of one object, whatever the format, so that one parser serves all
and the source row can be given back untouched. Nothing is lost: what can't be read as a row leaves
as a reject with its line.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from instructdiff_ray.errors import UserError
from instructdiff_ray.storage.filesystem import is_uri, open_filesystem

COMPRESSED = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".lz4": "lz4"}
# A longer row is no instruction pair but a broken file; this bounds the memory of a reader.
MAX_ROW_BYTES = 32 * 1024 * 1024
IPC_FILE = b"ARROW1"  # how an IPC file begins, and a stream does not


@dataclass(frozen=True)
class SourceFile:
    """A file to read. `path` is absolute or a URI; size (bytes) and mtime_ns are its identity. The
    path of a file of the Hub has its commit, and its time is 0.

    domain: of all its rows; None where the file names none.
    """

    path: str
    format: str
    size: int
    mtime_ns: int
    domain: str | None = None

    @property
    def compressed(self) -> bool:
        return self.path.lower().endswith(tuple(COMPRESSED))


@dataclass(frozen=True)
class FileRange:
    """What one reader takes of a file: all of it, or the rows that begin in a range of its bytes.

    end: None: up to the file's end. first_line: the number of the first line that begins in the
        range.
    """

    file: SourceFile
    start: int = 0
    end: int | None = None
    first_line: int = 1


class RawRow(NamedTuple):
    """A row before it is parsed. `line` counts from 1 (a Parquet file's rows likewise)."""

    line: int
    text: str
    reason: str | None = None
    detail: str | None = None


def read_rows(source: FileRange) -> Iterator[RawRow]:
    """Every row of the range, in order. A damaged file ends with one reject that says where."""
    file, last = source.file, source.first_line - 1
    try:
        for row in FORMATS[file.format].read(source):
            last = row.line
            yield row
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        _check_damaged(file, error)
        yield RawRow(last + 1, "", "unreadable_file", f"nothing after this: {_line(error)}")


def _check_damaged(file: SourceFile, error: Exception) -> None:
    """Raises UserError where it is not the file that is damaged: a disk or a network that fails
    (errno, or a remote store) must stop the run, only what the file holds may cost its rows."""
    if is_uri(file.path) or (isinstance(error, OSError) and error.errno is not None):
        raise UserError(f"{file.path} can't be read: {_line(error)}") from error


def extension(path: str) -> str:
    """Of the file's name, without that of its compression."""
    stem = path.lower()
    for ending in COMPRESSED:
        stem = stem.removesuffix(ending)
    return os.path.splitext(stem)[1]


def _open(file: SourceFile) -> io.BufferedReader:
    fs, path = open_filesystem(file.path)
    ending = os.path.splitext(path)[1].lower()
    compression = COMPRESSED.get(ending)
    return io.BufferedReader(fs.open_input_stream(path, compression=compression), 1 << 20)


def _read_lines(source: FileRange) -> Iterator[RawRow]:
    if source.end is None and not source.start:
        with _open(source.file) as stream:
            yield from _lines(stream)
        return
    with _open_at(source.file, max(0, source.start - 1)) as stream:
        # The line that begins before the range is another reader's. It may end just there.
        skipped = _skip_line(stream) if source.start else 1
        length = None if source.end is None else source.end - (source.start - 1 + skipped)
        yield from _lines(stream, source.first_line, length)


def count_newlines(file: SourceFile, start: int, end: int) -> int:
    """How many lines end in this range of the file's bytes. UserError where it can't be read."""
    count = 0
    try:
        with _open_at(file, start) as stream:
            while start < end and (block := stream.read(min(1 << 20, end - start))):
                count, start = count + block.count(b"\n"), start + len(block)
    except OSError as error:
        raise UserError(f"{file.path} can't be read: {_line(error)}") from error
    return count


def _open_at(file: SourceFile, start: int) -> io.BufferedReader:
    fs, path = open_filesystem(file.path)
    stream = fs.open_input_file(path)
    stream.seek(start)
    return io.BufferedReader(stream, 1 << 20)


def _skip_line(stream: io.BufferedReader) -> int:
    """Reads to the end of a line, however long; gives the number of its bytes."""
    skipped = 0
    while part := stream.readline(MAX_ROW_BYTES):
        skipped += len(part)
        if part.endswith(b"\n"):
            break
    return skipped


def _lines(
    stream: io.BufferedReader, first_line: int = 1, length: int | None = None
) -> Iterator[RawRow]:
    """The lines that begin within so many bytes (None: all)."""
    number, position = first_line - 1, 0
    while (length is None or position < length) and (raw := stream.readline(MAX_ROW_BYTES)):
        number, position = number + 1, position + len(raw)
        cut = len(raw) == MAX_ROW_BYTES and not raw.endswith(b"\n")
        if number == 1:
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        if cut:
            position += _skip_line(stream)
            detail = f"the line is longer than {MAX_ROW_BYTES} bytes"
            yield RawRow(number, raw[:1000].decode(errors="replace"), "too_large", detail)
        elif line := raw.strip():
            yield _decoded(number, line)


def _decoded(number: int, line: bytes) -> RawRow:
    try:
        return RawRow(number, line.decode())
    except UnicodeDecodeError as error:
        return RawRow(number, line.decode(errors="replace"), "invalid_utf8", str(error))


def _read_json(source: FileRange) -> Iterator[RawRow]:
    """A `.json` file is an array of objects, or, as many hubs write it, JSON Lines."""
    with _open(source.file) as stream:
        head = stream.peek(1 << 16).removeprefix(b"\xef\xbb\xbf").lstrip()
        if head.startswith(b"["):
            yield from _array_items(stream.read().removeprefix(b"\xef\xbb\xbf"))
        else:
            yield from _lines(stream)


def _array_items(raw: bytes) -> Iterator[RawRow]:
    """Items of a JSON array. Holds the file in memory, as the format asks."""
    # Bytes that are no UTF-8 become lone surrogates, which the row's parser rejects by name.
    text = raw.decode(errors="surrogateescape")
    decoder = json.JSONDecoder()
    line, counted = 1, 0
    position = _skip_space(text, text.index("[") + 1)
    while position < len(text) and text[position] != "]":
        line, counted = line + text.count("\n", counted, position), position
        try:
            item, end = decoder.raw_decode(text, position)
            row = _dump(item)
        except (ValueError, RecursionError) as error:
            rest = _clean(text[position : position + 1000])
            yield RawRow(line, rest, "invalid_json", f"nothing after this item: {error}")
            return
        yield RawRow(line, row)
        position = _skip_space(text, end)
        if position < len(text) and text[position] == ",":
            position = _skip_space(text, position + 1)
        elif position < len(text) and text[position] != "]":
            yield RawRow(line, "", "invalid_json", "nothing after this item: expected ',' or ']'")
            return
    line += text.count("\n", counted, position)
    if position >= len(text):
        yield RawRow(line, "", "invalid_json", "the array is cut off")
    elif (rest_at := _skip_space(text, position + 1)) < len(text):
        line += text.count("\n", position, rest_at)
        rest = _clean(text[rest_at : rest_at + 1000])
        yield RawRow(line, rest, "invalid_json", "nothing after the end of the array is read")


def _skip_space(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position


def _read_csv(source: FileRange) -> Iterator[RawRow]:
    csv.field_size_limit(MAX_ROW_BYTES)
    delimiter = "\t" if extension(source.file.path) == ".tsv" else ","
    with _open(source.file) as stream:
        # Bytes that are no UTF-8 become lone surrogates, which the row's parser rejects by name.
        text = io.TextIOWrapper(stream, "utf-8-sig", errors="surrogateescape", newline="")
        # Strict: a quote that is never closed is an error, not one field with the file's rest.
        reader = csv.reader(text, delimiter=delimiter, strict=True)
        header: list[str] | None = None
        while True:
            line = reader.line_num + 1
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield RawRow(line, "", "invalid_csv", f"lines {line} to {reader.line_num}: {error}")
                if header is None:  # without it no row has a meaning
                    return
                continue
            if not fields:
                continue
            if header is None:
                header = fields
            elif len(fields) == len(header):
                yield RawRow(line, _dump(dict(zip(header, fields, strict=True))))
            else:
                detail = f"{len(fields)} fields under a header of {len(header)}"
                yield RawRow(line, _dump(fields), "invalid_csv", detail)


def _read_parquet(source: FileRange) -> Iterator[RawRow]:
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
        _check_damaged(file, error)
        return []
    groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
    with_columns = [(_begin(group), group.num_rows) for group in groups if group.num_columns]
    return [(FileRange(file, begin, begin + 1), rows) for begin, rows in with_columns]


def _read_arrow(source: FileRange) -> Iterator[RawRow]:
    """Arrow's IPC stream, as `datasets` saves it, or IPC file, as others call it."""
    with _open(source.file) as stream:
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
        return [RawRow(line, _dump(row)) for line, row in enumerate(batch.to_pylist(), first)]
    except (ValueError, OverflowError) as error:
        if batch.num_rows == 1:
            return [RawRow(first, "", "invalid_value", _line(error))]
    singles = (batch.slice(number, 1) for number in range(batch.num_rows))
    return [row for line, single in enumerate(singles, first) for row in _batch_rows(single, line)]


def _dump(row: Any) -> str:
    text = json.dumps(row, ensure_ascii=False, default=_text)
    # A lone surrogate can't travel as UTF-8; escaped, it reaches the row's parser.
    return text if text.isascii() or _clean(text) == text else json.dumps(row, default=_text)


def _text(value: Any) -> str:
    """What JSON has no type for: text stored as bytes, dates, decimals."""
    return value.decode(errors="surrogateescape") if isinstance(value, bytes) else str(value)


def _clean(text: str) -> str:
    return text.encode(errors="replace").decode()


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())


class Format(NamedTuple):
    """A format of source files.

    endings: of their names; read: gives their rows; is_text: whether the size of a file that is not
    compressed is that of the text in it; divisible: whether readers can share such a file.
    """

    endings: tuple[str, ...]
    read: Callable[[FileRange], Iterator[RawRow]]
    is_text: bool = True
    divisible: bool = False


FORMATS = {
    "jsonl": Format((".jsonl", ".ndjson"), _read_lines, divisible=True),
    "json": Format((".json",), _read_json),
    "parquet": Format((".parquet",), _read_parquet, is_text=False, divisible=True),
    "csv": Format((".csv", ".tsv"), _read_csv),
    "arrow": Format((".arrow",), _read_arrow, is_text=False),
}
FORMAT_OF = {ending: name for name, format in FORMATS.items() for ending in format.endings}
