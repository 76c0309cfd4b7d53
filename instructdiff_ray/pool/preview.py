"""What a pool will be, from a look at some rows of its source files.

For plans: nothing is written, and no cluster is asked. Rows are taken from all over the files, in
proportion to their bytes, and parsed and encoded as an ingest does it.
"""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any, NamedTuple

import pyarrow as pa

from instructdiff_ray.config.run import Config
from instructdiff_ray.errors import UserError
from instructdiff_ray.models.encoding import EncoderSpec
from instructdiff_ray.models.model import Model
from instructdiff_ray.pool.chunks import RAW_ROWS
from instructdiff_ray.pool.cleaning import RowFilters
from instructdiff_ray.pool.columnar import row_groups
from instructdiff_ray.pool.ingest import empty_pool, parse_rows
from instructdiff_ray.pool.pool import INDEX, Pool
from instructdiff_ray.pool.readers import FORMATS, read_rows
from instructdiff_ray.pool.similarity import compared_text, find_alike, sets_of, shingles
from instructdiff_ray.pool.source import FileRange, SourceFile
from instructdiff_ray.storage.filesystem import Folder

# Rows that are encoded: with as many the mean length of samples is known to some percent.
SAMPLED_ROWS = 4096
# What is read at most, where a part of the files can be read for all: in pieces of such a size.
BYTES, BYTES_PER_PIECE = 64 << 20, 1 << 20
# Footers of Parquet files that are read at most.
FOOTERS = 64


@dataclass(frozen=True)
class SampledPool(Pool):
    """A pool that was not made yet, known by a sample of its rows.

    table: the sample's index, one partition. Counts are those of the pool, about: `len` too.
    rows: how many source rows were encoded; scale: samples of the pool for each in the index.
    """

    table: pa.Table = field(default_factory=INDEX.empty_table)
    rows: int = 0
    scale: float = 1.0

    @property
    def whole(self) -> bool:
        """Whether every row was looked at."""
        return self.rows == self.counts["read"]

    def read_partition(self, number: int, columns: list[str] | None = None) -> pa.Table:
        return self.table.select(columns or INDEX.names)


class RowSample(NamedTuple):
    """rows: how many there are, about; sample: some of them, drawn evenly, as RAW_ROWS."""

    rows: float
    sample: list[tuple[Any, ...]]


def preview_pool(config: Config, files: Sequence[SourceFile], model: Model) -> SampledPool:
    """The pool that these files will give, about. UserError where no row of the sample is valid."""
    data, draw = config.data, random.Random(0)
    if data.limit:  # the first rows of all files, which an ingest too reads one after the other
        groups = [_reservoir(islice(_rows(map(FileRange, files)), data.limit), draw)]
    else:
        of_kind: dict[tuple[str, bool], list[SourceFile]] = defaultdict(list)
        for file in files:
            of_kind[file.format, file.compressed].append(file)
        share = min(1.0, BYTES / max(1, sum(file.size for file in files)))
        groups = [_sample_files(of_kind[kind], share, draw) for kind in sorted(of_kind)]
    read = sum(group.rows for group in groups)
    rows = [row for group in groups for row in _in_proportion(group, read, draw)]
    raw = [dict(zip(RAW_ROWS.names, row, strict=True)) for row in rows]
    encoding, filters = EncoderSpec.of(config, model), RowFilters.of(config.clean)
    parsed = parse_rows(raw, data, config.domain, encoding, filters)
    samples, reasons = _distinct(parsed, data.keep_duplicates)
    if config.clean.near_duplicates is not None:
        samples, near = _unlike(samples, config.clean.near_duplicates)
        reasons["near_duplicate"] = near
    if not samples:
        raise UserError(empty_pool(data.paths, +reasons))
    scale = read / len(rows)
    scaled = {reason: round(count * scale) for reason, count in sorted((+reasons).items())}
    counts = {
        "read": round(read),
        "rejected": scaled,
        "pool": round(len(samples) * scale),
        "truncated": round(sum(sample["truncated"] for sample in samples) * scale),
    }
    table = pa.Table.from_pylist(samples, INDEX).sort_by("sample_id")
    return SampledPool(
        *(Folder(""), "", "", [], 1, data.keep_duplicates, counts),
        table=table,
        rows=len(rows),
        scale=scale,
    )


def _sample_files(files: Sequence[SourceFile], share: float, draw: random.Random) -> RowSample:
    """Rows of files of one format; of about this share of their bytes, where parts of them can be
    read."""
    if files[0].format == "parquet":
        return _sample_parquet(files, share, draw)
    pieces = [piece for file in files for piece in _pieces(file)]
    chosen = _evenly(pieces, math.ceil(share * len(pieces)))
    counted = _reservoir(_rows(chosen), draw)
    total, read = (sum(map(_size, each)) for each in (pieces, chosen))
    return RowSample(counted.rows * total / max(1, read), counted.sample)


def _sample_parquet(files: Sequence[SourceFile], share: float, draw: random.Random) -> RowSample:
    """Footers tell how many rows there are; which are read is a matter of row groups."""
    looked_at = _evenly(files, FOOTERS)
    groups = [group for file in looked_at for group in row_groups(file)]
    rows = sum(rows for _, rows in groups)
    scale = sum(file.size for file in files) / max(1, sum(file.size for file in looked_at))
    chosen = _evenly(groups, math.ceil(share * scale * len(groups)))
    sample = _reservoir(_rows(source for source, _ in chosen), draw)
    return RowSample(rows * scale, sample.sample)


def _pieces(file: SourceFile) -> list[FileRange]:
    """What can be read of a file by itself."""
    if file.compressed or not FORMATS[file.format].divisible:
        return [FileRange(file)]
    starts = range(0, max(1, file.size), BYTES_PER_PIECE)
    ends = [*starts[1:], None]
    return [FileRange(file, *bounds) for bounds in zip(starts, ends, strict=True)]


def _size(piece: FileRange) -> int:
    return (piece.file.size if piece.end is None else piece.end) - piece.start


def _evenly(items: Sequence[Any], count: int) -> list[Any]:
    """So many of the items, or all, as far from each other as may be."""
    count = min(len(items), count)
    return [items[(2 * number + 1) * len(items) // (2 * count)] for number in range(count)]


def _rows(sources: Iterable[FileRange]) -> Iterator[tuple[Any, ...]]:
    return chain.from_iterable(
        ((source.file.path, source.file.domain, *row) for row in read_rows(source))
        for source in sources
    )


def _reservoir(rows: Iterator[tuple[Any, ...]], draw: random.Random) -> RowSample:
    """Of the rows SAMPLED_ROWS, each as likely as any other, in their order; all are counted."""
    held: list[tuple[int, tuple[Any, ...]]] = []
    count = 0
    for row in rows:
        if len(held) < SAMPLED_ROWS:
            held.append((count, row))
        elif (place := draw.randrange(count + 1)) < SAMPLED_ROWS:
            held[place] = (count, row)
        count += 1
    return RowSample(count, [row for _, row in sorted(held, key=lambda pair: pair[0])])


def _in_proportion(group: RowSample, read: float, draw: random.Random) -> list[tuple[Any, ...]]:
    """As many of the group's sample as its rows are of all that are read."""
    count = min(len(group.sample), math.ceil(SAMPLED_ROWS * group.rows / max(1.0, read)))
    chosen = sorted(draw.sample(range(len(group.sample)), count))
    return [group.sample[place] for place in chosen]


def _distinct(
    parsed: Sequence[dict[str, Any]], keep_duplicates: bool
) -> tuple[list[dict[str, Any]], Counter[str]]:
    """The samples, and how many rows are rejects, by reason. Duplicates are those in the sample."""
    reasons = Counter(row["reason"] for row in parsed if "reason" in row)
    samples: dict[str, dict[str, Any]] = {}
    for row in parsed:
        if "reason" in row:
            continue
        name, again = row["sample_id"], 0
        while name in samples and keep_duplicates:
            again += 1
            name = f"{row['sample_id']}-{again}"
        if name in samples:
            reasons["duplicate"] += 1
        else:
            samples[name] = {**row, "sample_id": name}
    return list(samples.values()), reasons


def _unlike(
    samples: Sequence[dict[str, Any]], similarity: float
) -> tuple[list[dict[str, Any]], int]:
    """The samples without near-duplicates of others of them, and how many those are."""
    texts = [compared_text(sample["parts"]) for sample in samples]
    alike = find_alike(sets_of(shingles(texts)), similarity)
    left = [sample for sample, other in zip(samples, alike, strict=True) if other < 0]
    return left, len(samples) - len(left)
