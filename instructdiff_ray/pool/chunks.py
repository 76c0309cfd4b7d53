"""Source files in chunks: what is read and parsed at once, and is done once and for all.

Files are shared out to readers in *groups*: many small files, one, or a range of a large one. A
reader cuts the rows of its group into chunks, the same ones whenever it reads the group. Each chunk
is parsed to one part of the pool, whose name says which chunk it was: so what an ingest that was
killed has parsed need not be parsed again, and the order of names is the order of rows.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, NamedTuple

import pyarrow as pa

from instructdiff_ray.pool.readers import FORMATS, count_newlines, read_rows
from instructdiff_ray.pool.source import FileRange, SourceFile
from instructdiff_ray.pool.tasks import results, task

# To start a reader costs as much as to read this.
BYTES_PER_READER = 4 << 20
# A larger file is read by several readers, where its format allows it.
BYTES_PER_RANGE = 64 << 20
# A chunk ends with whichever is reached first.
ROWS_PER_CHUNK = 4096
CHARACTERS_PER_CHUNK = 8 << 20
# Where one of these changes, chunks are others.
CHUNKING = (BYTES_PER_READER, BYTES_PER_RANGE, ROWS_PER_CHUNK, CHARACTERS_PER_CHUNK)
RAW_ROWS = pa.schema(
    [
        ("file", pa.string()),
        ("domain", pa.string()),
        ("line", pa.int64()),
        ("text", pa.large_string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)
PART = re.compile(r"part-(\d{7})-(\d{7})(-last)?\.parquet")
Group = Sequence[FileRange]


@dataclass(frozen=True)
class Chunk:
    """Rows of a group (a table of RAW_ROWS), by their place in it."""

    group: int
    number: int
    last: bool
    rows: pa.Table

    @property
    def part(self) -> str:
        """The file that it is parsed to."""
        return f"part-{self.group:07}-{self.number:07}{'-last' if self.last else ''}.parquet"


def reader_groups(files: Sequence[SourceFile]) -> Iterator[Group]:
    """Files in their order, one reader's each: many small ones, a large one, or a range of one."""
    group: list[FileRange] = []
    size = 0
    for file in files:
        if group and size + file.size > BYTES_PER_READER:
            yield group
            group, size = [], 0
        divisible = FORMATS[file.format].divisible and not file.compressed
        if divisible and file.size > BYTES_PER_RANGE:
            starts = range(0, file.size, BYTES_PER_RANGE)
            ends = [*starts[1:], None]
            yield from ([FileRange(file, *ends)] for ends in zip(starts, ends, strict=True))
        else:
            group.append(FileRange(file))
            size += file.size
    if group:
        yield group


def with_lines(groups: Sequence[Group]) -> list[Group]:
    """The groups, whose ranges of text know the number of their first line: the lines before are
    counted on the cluster."""
    ranges = [group[0] for group in groups if _within_text(group[0])]
    count = task(count_newlines)
    # Up to the byte before the range: a line that ends there is the one before the first.
    counts = results(
        count(r.file, max(0, r.start - BYTES_PER_RANGE - 1), r.start - 1) for r in ranges
    )
    newlines = dict(zip(ranges, counts, strict=True))
    before: Counter[str] = Counter()
    numbered = []
    for group in groups:
        source = group[0]
        if source in newlines:
            before[source.file.path] += newlines[source]
            # The rest of the line before, and one, for lines count from 1.
            group = [replace(source, first_line=before[source.file.path] + 2)]
        numbered.append(group)
    return numbered


def _within_text(source: FileRange) -> bool:
    return source.start > 0 and FORMATS[source.file.format].is_text


class Parsed(NamedTuple):
    """The chunks of a group of which there are parts, and whether these are all that it has."""

    chunks: set[int]
    complete: bool


def parsed_chunks(names: Collection[str]) -> dict[int, Parsed]:
    """What was parsed of each group, by the names of parts."""
    chunks: dict[int, set[int]] = defaultdict(set)
    last: dict[int, int] = {}
    for match in filter(None, map(PART.fullmatch, names)):
        group, chunk = int(match[1]), int(match[2])
        chunks[group].add(chunk)
        if match[3]:
            last[group] = chunk
    return {
        group: Parsed(of, group in last and len(of) == last[group] + 1)
        for group, of in chunks.items()
    }


def read_chunks(
    batch: Mapping[str, Any], limit: int | None, done: Mapping[int, Collection[int]]
) -> Iterator[pa.Table]:
    """The chunks of one group that are not done, a row each: small enough to hold, and the same
    however Ray cuts its blocks."""
    group = int(batch["group"][0])
    sources = [
        replace(FileRange(**source), file=SourceFile(**source["file"]))
        for source in batch["sources"][0]
    ]
    rows = islice(
        (
            (source.file.path, source.file.domain, *row)
            for source in sources
            for row in read_rows(source)
        ),
        limit,
    )
    for number, (last, chunk) in enumerate(_chunks(rows)):
        if number not in done.get(group, ()):
            yield _packed(Chunk(group, number, last, chunk))


def _chunks(rows: Iterator[tuple[Any, ...]]) -> Iterator[tuple[bool, pa.Table]]:
    """The rows in tables, and whether each is the last; there is one, though it may be empty."""
    held: list[tuple[Any, ...]] = []
    characters = 0
    for row in rows:
        if len(held) == ROWS_PER_CHUNK or characters > CHARACTERS_PER_CHUNK:
            yield False, _table(held)
            held, characters = [], 0
        held.append(row)
        characters += len(row[3])
    yield True, _table(held)


def _table(rows: Sequence[tuple[Any, ...]]) -> pa.Table:
    columns = zip(*rows, strict=True) if rows else [[]] * len(RAW_ROWS)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, RAW_ROWS, strict=True)]
    return pa.table(arrays, schema=RAW_ROWS)


PACKED = pa.schema(
    [
        ("group", pa.int64()),
        ("number", pa.int64()),
        ("last", pa.bool_()),
        ("rows", pa.large_binary()),
    ]
)


def _packed(chunk: Chunk) -> pa.Table:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, RAW_ROWS) as stream:
        stream.write_table(chunk.rows)
    rows = pa.array([sink.getvalue().to_pybytes()], pa.large_binary())
    return pa.table([[chunk.group], [chunk.number], [chunk.last], rows], schema=PACKED)


def unpacked(table: pa.Table) -> list[Chunk]:
    """The chunks of a table that `read_chunks` gave."""
    chunks = []
    for row in table.to_pylist():
        with pa.ipc.open_stream(row.pop("rows")) as stream:
            chunks.append(Chunk(**row, rows=stream.read_all()))
    return chunks
