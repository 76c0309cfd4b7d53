"""The end of an ingest, on the cluster: duplicates found, the index and the rejects written.

A part is never written again: what of its rows is a duplicate stands in `duplicates.parquet`, and
is dropped or numbered whenever the part is read (dataset.py).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from instructdiff_ray.pool.dataset import duplicates_in, numbered_ids
from instructdiff_ray.pool.near_duplicates import find_near_duplicates
from instructdiff_ray.pool.partition import (
    MOST_PARTITIONS,
    among,
    partition_count,
    partition_file,
    partition_numbers,
)
from instructdiff_ray.pool.pool import (
    DUPLICATES,
    DUPLICATES_FILE,
    INDEX,
    REJECT_SOURCE_CHARACTERS,
    REJECTS,
    REJECTS_FILE,
)
from instructdiff_ray.pool.tasks import for_each_partition, results, task
from instructdiff_ray.storage.filesystem import Folder

# With 4,096 rows a part, about as many rows as a partition holds.
PARTS_PER_TASK = 256
READERS_PER_TASK = 32  # in an object store each file is a wait of its own
# What is read of all parts: `part` counts them in source order, `row` the rows in one.
NARROW = pa.schema(
    [
        *(field for field in INDEX if field.name != "domain"),
        ("domain", pa.string()),
        ("truncated", pa.bool_()),
        ("part", pa.int32()),
        ("row", pa.int32()),
    ]
)


class PartCounts(NamedTuple):
    """Of some parts: rows; samples, duplicates among them; rejects by reason; and the numbers of
    the parts that have rejects."""

    read: int
    samples: int
    reasons: Counter[str]
    rejecting: list[int]


class PartitionInfo(NamedTuple):
    """Of a partition's samples: how many, how many are truncated, and hashes of their ids and
    domains, those of the smallest partitions that there can be; and what was read before, as
    DUPLICATES."""

    samples: int
    truncated: int
    hashes: list[bytes]
    duplicates: pa.Table


def deduplicate(
    parts: Sequence[str],
    keep_duplicates: bool,
    folder: Folder,
    near_duplicates: float | None = None,
) -> dict[str, Any]:
    """Drop or number duplicates, write index and rejects, and give what the manifest notes.

    parts: names of the parts, in source order. Of equal samples the first in this order stays.
    near_duplicates: the similarity from which samples are dropped too; None keeps them.
    """
    read, numbered = task(_read_narrow, outputs=2), list(enumerate(parts))
    tasks = [
        read(numbered[start : start + PARTS_PER_TASK], folder)
        for start in range(0, len(parts), PARTS_PER_TASK)
    ]
    counts = [PartCounts(*each) for each in results([counts for _, counts in tasks])]
    samples = sum(each.samples for each in counts)
    count, tables = partition_count(samples), [table for table, _ in tasks]
    near = DUPLICATES.empty_table()
    if near_duplicates is not None:
        repeats = _in_order(for_each_partition(tables, count, _find_repeats))
        near = find_near_duplicates(parts, samples, repeats, near_duplicates, folder)
    write = partial(
        _write_partition,
        count=count,
        keep_duplicates=keep_duplicates,
        near=ray.put(near),
        folder=folder,
    )
    infos = for_each_partition(tables, count, write)
    duplicates = _in_order([near, *(info.duplicates for info in infos)])
    folder.write_table(DUPLICATES_FILE, duplicates)
    reasons = sum((each.reasons for each in counts), Counter[str]())
    dropped = DUPLICATES.empty_table() if keep_duplicates else duplicates
    for reason, number in (
        ("duplicate", dropped.num_rows - near.num_rows),
        ("near_duplicate", near.num_rows),
    ):
        if number > 0:
            reasons[reason] += number
    rejecting = {n for each in counts for n in each.rejecting} | {
        *pc.unique(dropped["part"]).to_pylist()
    }
    _write_rejects([(n, parts[n]) for n in sorted(rejecting)], dropped, folder)
    digest = hashlib.sha256(b"".join(each for info in infos for each in info.hashes))
    return {
        "digest": digest.hexdigest()[:16],
        "parts": list(parts),
        "partitions": count,
        "keep_duplicates": keep_duplicates,
        "counts": {
            "read": sum(each.read for each in counts),
            "rejected": dict(sorted(reasons.items())),
            "pool": sum(info.samples for info in infos),
            "truncated": sum(info.truncated for info in infos),
        },
    }


def _read_narrow(parts: Sequence[tuple[int, str]], folder: Folder) -> tuple[pa.Table, PartCounts]:
    """The samples of these parts as NARROW, and what they count."""
    names = [*NARROW.names[:-2], "reason"]
    with ThreadPoolExecutor(READERS_PER_TASK) as threads:
        tables = list(threads.map(lambda part: folder.read_table(part[1], names), parts))
    counts = PartCounts(0, 0, Counter(), [])
    narrow = [NARROW.empty_table()]
    for (number, _), table in zip(parts, tables, strict=True):
        valid = pc.is_null(table["reason"])
        samples = int(pc.sum(valid).as_py() or 0)
        counts.reasons.update(table["reason"].drop_null().to_pylist())
        if samples < table.num_rows:
            counts.rejecting.append(number)
        counts = counts._replace(
            read=counts.read + table.num_rows, samples=counts.samples + samples
        )
        rows = np.arange(table.num_rows, dtype=np.int32)
        columns = [*table.drop_columns("reason").columns, np.full_like(rows, number), rows]
        narrow.append(pa.table(columns, schema=NARROW).filter(valid))
    return pa.concat_tables(narrow).combine_chunks(), counts


def _in_order(duplicates: Sequence[pa.Table]) -> pa.Table:
    """Tables of DUPLICATES as one, in source order."""
    in_order = [("part", "ascending"), ("row", "ascending")]
    return pa.concat_tables(duplicates).sort_by(in_order).combine_chunks()


def _sorted_repeats(rows: pa.Table) -> tuple[pa.Table, np.ndarray]:
    """Rows of NARROW by their ids, and how many equal samples were read before each."""
    rows = rows.sort_by([(name, "ascending") for name in ("sample_id", "part", "row")])
    ids = rows["sample_id"].to_numpy()
    places = np.arange(len(ids))
    # Of equal samples the first one read stays: how many stand before a row in its group?
    starts = np.append(True, ids[1:] != ids[:-1])[: len(ids)]
    return rows, (places - np.maximum.accumulate(np.where(starts, places, 0))).astype(np.int32)


def _repeated(rows: pa.Table, repeats: np.ndarray) -> pa.Table:
    """The rows that were read before, as DUPLICATES."""
    again = np.flatnonzero(repeats)
    moved = rows.take(again).append_column("repeat", pa.array(repeats[again]))
    return moved.select(DUPLICATES.names)


def _find_repeats(number: int, rows: pa.Table) -> pa.Table:
    return _repeated(*_sorted_repeats(rows))


def _write_partition(
    number: int,
    rows: pa.Table,
    count: int,
    keep_duplicates: bool,
    near: ray.ObjectRef,
    folder: Folder,
) -> PartitionInfo:
    """Write a partition of the index, one of `count`. rows: of NARROW, duplicates among them; near:
    of the whole pool, and none where duplicates are kept."""
    rows, repeats = _sorted_repeats(rows)
    duplicates = _repeated(rows, repeats)
    if keep_duplicates:
        ids, again = rows["sample_id"].to_numpy().copy(), np.flatnonzero(repeats)
        ids[again] = numbered_ids(duplicates).to_numpy(zero_copy_only=False)
        named = rows.set_column(0, NARROW.field(0), pa.array(ids, pa.string()))
        rows = named.sort_by("sample_id")
    else:
        going = among(_places(rows), _places(ray.get(near)))
        rows = rows.filter(pa.array((repeats == 0) & ~going))
    folder.write_table(partition_file("index", number), rows.select(INDEX.names).cast(INDEX))
    truncated = pc.sum(rows["truncated"]).as_py() or 0
    return PartitionInfo(rows.num_rows, truncated, _hashes(number, count, rows), duplicates)


def _places(rows: pa.Table) -> np.ndarray:
    """A number for each row, in source order."""
    return (rows["part"].to_numpy().astype(np.int64) << 32) | rows["row"].to_numpy()


def _hashes(number: int, count: int, rows: pa.Table) -> list[bytes]:
    """The same however many partitions there are."""
    lines = [
        f"{sample_id} {domain}\n"
        for sample_id, domain in zip(
            rows["sample_id"].to_pylist(), rows["domain"].to_pylist(), strict=True
        )
    ]
    first, end = (MOST_PARTITIONS * n // count for n in (number, number + 1))
    places = np.searchsorted(partition_numbers(rows, MOST_PARTITIONS), np.arange(first, end + 1))
    pairs = zip(places, places[1:], strict=False)
    return [hashlib.sha256("".join(lines[a:b]).encode()).digest() for a, b in pairs]


def _write_rejects(parts: Sequence[tuple[int, str]], dropped: pa.Table, folder: Folder) -> None:
    """Write `rejects.parquet` in source order: the rejects of these parts, and what was dropped."""
    with folder.open_table(REJECTS_FILE, REJECTS) as write:
        for table in _rejects_of(parts, dropped, folder) if parts else ():
            write(table)


def _rejects_of(
    parts: Sequence[tuple[int, str]], dropped: pa.Table, folder: Folder
) -> Iterator[pa.Table]:
    read, held = task(read_rejects), ray.put(dropped)
    tasks = [
        read(parts[start : start + PARTS_PER_TASK], held, folder)
        for start in range(0, len(parts), PARTS_PER_TASK)
    ]
    return (table for each in tasks for table in results([each]))


def read_rejects(parts: Sequence[tuple[int, str]], dropped: pa.Table, folder: Folder) -> pa.Table:
    """The rejects of these parts, with the duplicates that are dropped, as REJECTS."""
    with ThreadPoolExecutor(READERS_PER_TASK) as threads:
        tables = threads.map(lambda part: _rejects_in(part, dropped, folder), parts)
        return pa.concat_tables(tables)


def _rejects_in(part: tuple[int, str], dropped: pa.Table, folder: Folder) -> pa.Table:
    number, name = part
    table, again = folder.read_table(name, REJECTS.names), duplicates_in(dropped, number)
    reasons, details = table["reason"].to_pylist(), table["detail"].to_pylist()
    for duplicate in again.to_pylist():
        row = duplicate["row"]
        near, other = duplicate["repeat"] == 0, duplicate["sample_id"]
        reasons[row] = "near_duplicate" if near else "duplicate"
        details[row] = f"like {other}" if near else f"same as {other}"
    source = pc.utf8_slice_codeunits(table["source"], 0, REJECT_SOURCE_CHARACTERS)
    columns = {"file": table["file"], "line": table["line"], "reason": reasons, "detail": details}
    rejects = pa.table([*columns.values(), source], schema=REJECTS)
    return rejects.filter(pc.is_valid(rejects["reason"]))
