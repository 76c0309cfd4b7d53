"""Raw files to raw rows: every row with its line.

Lines, JSON and CSV are read here, formats that store columns in columnar.py. Nothing is lost: what
can't be read as a row leaves as a reject with its line.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pyarrow as pa

from instructdiff_ray.errors import UserError
from instructdiff_ray.pool.columnar import read_arrow, read_parquet
from instructdiff_ray.pool.source import (
    FileRange,
    RawRow,
    SourceFile,
    check_damaged,
    extension,
    in_one_line,
    open_source,
    row_text,
    without_surrogates,
)
from instructdiff_ray.storage.filesystem import open_filesystem

# A longer row is no instruction pair but a broken file; this bounds the memory of a reader.
MAX_ROW_BYTES = 32 * 1024 * 1024


def read_rows(source: FileRange) -> Iterator[RawRow]:
    """Every row of the range, in order. A damaged file ends with one reject that says where."""
    file, last = source.file, source.first_line - 1
    try:
        for row in FORMATS[file.format].read(source):
            last = row.line
            yield row
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        check_damaged(file, error)
        yield RawRow(last + 1, "", "unreadable_file", f"nothing after this: {in_one_line(error)}")


def _read_lines(source: FileRange) -> Iterator[RawRow]:
    if source.end is None and not source.start:
        with open_source(source.file) as stream:
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
        raise UserError(f"{file.path} can't be read: {in_one_line(error)}") from error
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
    with open_source(source.file) as stream:
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
            row = row_text(item)
        except (ValueError, RecursionError) as error:
            rest = without_surrogates(text[position : position + 1000])
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
        rest = without_surrogates(text[rest_at : rest_at + 1000])
        yield RawRow(line, rest, "invalid_json", "nothing after the end of the array is read")


def _skip_space(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position


def _read_csv(source: FileRange) -> Iterator[RawRow]:
    csv.field_size_limit(MAX_ROW_BYTES)
    delimiter = "\t" if extension(source.file.path) == ".tsv" else ","
    with open_source(source.file) as stream:
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
                yield RawRow(line, row_text(dict(zip(header, fields, strict=True))))
            else:
                detail = f"{len(fields)} fields under a header of {len(header)}"
                yield RawRow(line, row_text(fields), "invalid_csv", detail)


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
    "parquet": Format((".parquet",), read_parquet, is_text=False, divisible=True),
    "csv": Format((".csv", ".tsv"), _read_csv),
    "arrow": Format((".arrow",), read_arrow, is_text=False),
}
FORMAT_OF = {ending: name for name, format in FORMATS.items() for ending in format.endings}
