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


@dataclass(frozen=True)
class SourceFile:
    """A file to read. `path` is absolute or a URI; size (bytes) and mtime_ns are its identity.

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


class RawRow(NamedTuple):
    """A row before it is parsed. `line` counts from 1 (a Parquet file's rows likewise)."""

    line: int
    text: str
    reason: str | None = None
    detail: str | None = None


def read_rows(file: SourceFile) -> Iterator[RawRow]:
    """Every row of the file, in order. A damaged file ends with one reject that says where."""
    last = 0
    try:
        for row in FORMATS[file.format].read(file):
            last = row.line
            yield row
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        # A disk or a network that fails (errno, or a remote store) must stop the run: only what
        # the file itself holds may cost its rows.
        if is_uri(file.path) or (isinstance(error, OSError) and error.errno is not None):
            raise UserError(f"{file.path} can't be read: {_line(error)}") from error
        yield RawRow(last + 1, "", "unreadable_file", f"nothing after this: {_line(error)}")


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


def _read_lines(file: SourceFile) -> Iterator[RawRow]:
    with _open(file) as stream:
        yield from _lines(stream)


def _lines(stream: io.BufferedReader) -> Iterator[RawRow]:
    number = 0
    while raw := stream.readline(MAX_ROW_BYTES):
        number += 1
        cut = len(raw) == MAX_ROW_BYTES and not raw.endswith(b"\n")
        if number == 1:
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        if cut:
            while (rest := stream.readline(MAX_ROW_BYTES)) and not rest.endswith(b"\n"):
                pass
            detail = f"the line is longer than {MAX_ROW_BYTES} bytes"
            yield RawRow(number, raw[:1000].decode(errors="replace"), "too_large", detail)
        elif line := raw.strip():
            yield _decoded(number, line)


def _decoded(number: int, line: bytes) -> RawRow:
    try:
        return RawRow(number, line.decode())
    except UnicodeDecodeError as error:
        return RawRow(number, line.decode(errors="replace"), "invalid_utf8", str(error))


def _read_json(file: SourceFile) -> Iterator[RawRow]:
    """A `.json` file is an array of objects, or, as many hubs write it, JSON Lines."""
    with _open(file) as stream:
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


def _read_csv(file: SourceFile) -> Iterator[RawRow]:
    csv.field_size_limit(MAX_ROW_BYTES)
    delimiter = "\t" if extension(file.path) == ".tsv" else ","
    with _open(file) as stream:
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


def _read_parquet(file: SourceFile) -> Iterator[RawRow]:
    fs, path = open_filesystem(file.path)
    with fs.open_input_file(path) as stream:
        number = 0
        for batch in pq.ParquetFile(stream).iter_batches(batch_size=1024):
            for row in _batch_rows(batch, number + 1):
                number += 1
                yield row


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
    compressed is that of the text in it.
    """

    endings: tuple[str, ...]
    read: Callable[[SourceFile], Iterator[RawRow]]
    is_text: bool = True


FORMATS = {
    "jsonl": Format((".jsonl", ".ndjson"), _read_lines),
    "json": Format((".json",), _read_json),
    "parquet": Format((".parquet",), _read_parquet, is_text=False),
    "csv": Format((".csv", ".tsv"), _read_csv),
}
FORMAT_OF = {ending: name for name, format in FORMATS.items() for ending in format.endings}
