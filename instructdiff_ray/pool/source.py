"""A source file, what one reader takes of it, and a row of it before it is parsed.

A row is the JSON text of one object, whatever the format, so that one parser serves all and the
source row can be given back untouched.
"""

from __future__ import annotations

import io
import json
import os
from dataclasses import dataclass
from typing import Any, NamedTuple

from instructdiff_ray.errors import UserError
from instructdiff_ray.storage.filesystem import is_uri, open_filesystem

COMPRESSED = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".lz4": "lz4"}


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


def check_damaged(file: SourceFile, error: Exception) -> None:
    """Raises UserError where it is not the file that is damaged: a disk or a network that fails
    (errno, or a remote store) must stop the run, only what the file holds may cost its rows."""
    if is_uri(file.path) or (isinstance(error, OSError) and error.errno is not None):
        raise UserError(f"{file.path} can't be read: {in_one_line(error)}") from error


def extension(path: str) -> str:
    """Of the file's name, without that of its compression."""
    stem = path.lower()
    for ending in COMPRESSED:
        stem = stem.removesuffix(ending)
    return os.path.splitext(stem)[1]


def open_source(file: SourceFile) -> io.BufferedReader:
    """What the file holds, decompressed, from its beginning."""
    fs, path = open_filesystem(file.path)
    ending = os.path.splitext(path)[1].lower()
    compression = COMPRESSED.get(ending)
    return io.BufferedReader(fs.open_input_stream(path, compression=compression), 1 << 20)


def row_text(row: Any) -> str:
    """The row as JSON."""
    text = json.dumps(row, ensure_ascii=False, default=_text)
    if text.isascii() or without_surrogates(text) == text:
        return text
    # A lone surrogate can't travel as UTF-8; escaped, it reaches the row's parser.
    return json.dumps(row, default=_text)


def _text(value: Any) -> str:
    """What JSON has no type for: text stored as bytes, dates, decimals."""
    return value.decode(errors="surrogateescape") if isinstance(value, bytes) else str(value)


def without_surrogates(text: str) -> str:
    """The text with a question mark in the place of each lone surrogate."""
    return text.encode(errors="replace").decode()


def in_one_line(error: BaseException) -> str:
    """The error's message."""
    return " ".join(str(error).split())
