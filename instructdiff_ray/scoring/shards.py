"""What scorers have done, by sample, under one model: pieces, folded into snapshots.

A scorer writes a batch of scores as a *piece*, which appears whole. A hundred thousand of these
would be slow to read, so they are folded on the cluster: into a *snapshot*, sorted by sample_id, a
file for each partition, complete once its manifest is there; then what was folded is deleted. Eight
snapshots of one size become a larger one, so a row is written again a few times at most, however
many are scored. A reader looks at snapshots alone, and of these only at those that share samples
with its pool.

Nothing is locked. Scores of a sample under one model are the same whoever computed them, so it does
no harm if two runs fold the same pieces, and a fold that dies has deleted nothing.
"""

from __future__ import annotations

import json
import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from instructdiff_ray.errors import DamagedFile
from instructdiff_ray.pool import partition
from instructdiff_ray.pool.partition import (
    id_array,
    partition_bounds,
    partition_count,
    partition_file,
    split_by_partition,
)
from instructdiff_ray.pool.tasks import results, task
from instructdiff_ray.scoring.blocks import KILLS_SCORER, OUT_OF_MEMORY
from instructdiff_ray.storage.artifacts import MANIFEST
from instructdiff_ray.storage.filesystem import Folder, join

PIECE, SNAPSHOT = "piece-", "snapshot-"
BYTES_PER_FOLD = 64 << 20  # of pieces that become one snapshot: about a million rows
FAN_IN = 8  # snapshots of one size that become one
# Files that a task reads or deletes at once: in an object store each is a wait of its own.
SIDE_BY_SIDE = 32


def shard_schema(measures: Sequence[str]) -> pa.Schema:
    """The measures are null, and reason and detail are not, where a sample could not be scored."""
    return pa.schema(
        [("sample_id", pa.string()), ("response_tokens", pa.int32())]
        + [(measure, pa.float64()) for measure in measures]
        + [("reason", pa.string()), ("detail", pa.string())]
    )


def write_piece(folder: Folder, scores: pa.Table) -> tuple[str, int]:
    """Write scores; gives the piece's name and its size in bytes."""
    name = f"{PIECE}{uuid.uuid4().hex}.parquet"
    return name, folder.write_table(name, scores)


@dataclass(frozen=True)
class Snapshot:
    """Sorted scores. name: of its folder; files: those of its partitions that are there."""

    name: str
    rows: int
    partitions: int
    files: frozenset[str]

    @property
    def tier(self) -> int:
        """0 up to the rows of a partition, and one more for each further factor of FAN_IN:
        snapshots of one tier are merged."""
        tier, rows = 0, partition.ROWS_PER_PARTITION
        while self.rows > rows:
            tier, rows = tier + 1, rows * FAN_IN
        return tier

    def file(self, number: int) -> str:
        return join(self.name, partition_file("scores", number))

    def files_of(self, number: int, count: int) -> list[str]:
        """The files with rows of this partition of so many; one that was damaged is missing."""
        first = number * self.partitions // count
        last = max(first + 1, (number + 1) * self.partitions // count)
        return [file for file in map(self.file, range(first, last)) if file in self.files]


class Shards:
    """What a folder of scores holds now. pieces: name → bytes, of those that were not folded.

    Raises FileNotFoundError where another run merges snapshots at this moment.
    """

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        present = folder.sizes()
        manifests = {
            name.split("/")[0]: _manifest(folder, name)
            for name in present
            if name.startswith(SNAPSHOT) and name.endswith(MANIFEST)
        }
        folded = {name for manifest in manifests.values() for name in manifest["folded"]}
        self.snapshots = [
            Snapshot(
                name,
                manifest["rows"],
                manifest["partitions"],
                frozenset(file for file in present if file.startswith(f"{name}/scores-")),
            )
            for name, manifest in sorted(manifests.items())
            if name not in folded
        ]
        self.pieces = {
            name: size
            for name, size in sorted(present.items())
            if name.startswith(PIECE) and name.endswith(".parquet") and name not in folded
        }
        # Of a fold that died before it had deleted them.
        self.leftovers = sorted(folded & {name.split("/")[0] for name in present})


def _manifest(folder: Folder, name: str) -> dict[str, Any]:
    data = folder.read_bytes(name)
    if data is None:
        raise FileNotFoundError(name)
    try:
        manifest: dict[str, Any] = json.loads(data)
    except ValueError:  # its samples are scored again
        folder.delete(name.split("/")[0])
        raise FileNotFoundError(name) from None
    return manifest


def fold(folder: Folder) -> Shards:
    """Fold all pieces; gives what the folder then holds."""
    shards = Shards(folder)
    batches = [*_batches(shards.pieces)]
    if not batches:
        return shards
    start = task(fold_pieces)
    results([start(folder, batch, shards.leftovers) for batch in batches])
    return Shards(folder)


class BackgroundFolds:
    """Folds pieces while others are written. `add` them; `wait` before anything is read."""

    def __init__(self) -> None:
        self._pieces: dict[Folder, dict[str, int]] = defaultdict(dict)
        self._tasks: list[ray.ObjectRef] = []

    def add(self, folder: Folder, name: str, size: int) -> None:
        pieces = self._pieces[folder]
        pieces[name] = size
        if sum(pieces.values()) >= BYTES_PER_FOLD:
            self._tasks.append(task(fold_pieces)(folder, [*pieces]))
            pieces.clear()

    def wait(self) -> None:
        results(self._tasks)


def _batches(pieces: Mapping[str, int]) -> Iterator[list[str]]:
    batch, size = [], 0
    for name in pieces:
        batch.append(name)
        size += pieces[name]
        if size >= BYTES_PER_FOLD:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def fold_pieces(folder: Folder, names: Sequence[str], leftovers: Sequence[str] = ()) -> None:
    """Make a snapshot of these pieces, and delete them and leftovers of earlier folds."""
    with ThreadPoolExecutor(SIDE_BY_SIDE) as threads:
        # Whole, or damage elsewhere goes unnoticed.
        read = threads.map(lambda name: read_piece(folder, name), names)
        tables = [table for table in read if table is not None]
    if tables:
        rows = one_row_each(pa.concat_tables(tables))
        count = partition_count(rows.num_rows)
        write_snapshot(folder, enumerate(split_by_partition(rows, count)), count, names)
    _delete(folder, [*names, *leftovers])


def write_snapshot(
    folder: Folder,
    parts: Iterable[tuple[int, pa.Table]],
    partitions: int,
    folded: Sequence[str] = (),
) -> None:
    """Write a snapshot; it counts once all of it is there. parts: numbers of partitions, of so
    many, and their rows, sorted by id, one of each; folded: what is deleted after this."""
    snapshot, rows = folder.sub(_new_snapshot()), 0
    for number, part in parts:
        snapshot.write_table(partition_file("scores", number), part)
        rows += part.num_rows
    _finish(snapshot, rows, partitions, folded)


def read_piece(folder: Folder, name: str, columns: list[str] | None = None) -> pa.Table | None:
    """A piece, or some columns of it; None where it is damaged, or another run has folded it."""
    try:
        return folder.read_table(name, columns)
    except (DamagedFile, FileNotFoundError):
        return None


def to_merge(snapshots: Sequence[Snapshot]) -> list[Snapshot]:
    """Those of the lowest tier of which there are many; none where no tier has many."""
    tiers: dict[int, list[Snapshot]] = defaultdict(list)
    for snapshot in snapshots:
        tiers[snapshot.tier].append(snapshot)
    return next((same for _, same in sorted(tiers.items()) if len(same) >= FAN_IN), [])


def merge(folder: Folder, snapshots: Sequence[Snapshot]) -> None:
    """Make one snapshot of several, a task for each partition."""
    count = partition_count(sum(snapshot.rows for snapshot in snapshots))
    new = folder.sub(_new_snapshot())
    merge = task(_merge_partition)
    try:
        rows = results([merge(folder, snapshots, new, n, count) for n in range(count)])
    except FileNotFoundError:  # another run has just merged them
        new.delete()
        return
    names = [snapshot.name for snapshot in snapshots]
    _finish(new, sum(rows), count, names)
    _delete(folder, names)


def _merge_partition(
    folder: Folder, snapshots: Sequence[Snapshot], new: Folder, number: int, count: int
) -> int:
    files = [file for snapshot in snapshots for file in snapshot.files_of(number, count)]
    read = (read_partition(folder, file, number, count) for file in files)
    tables = [table for table in read if table is not None]
    if not tables:  # all files of it were damaged
        return 0
    rows = one_row_each(pa.concat_tables(tables))
    new.write_table(partition_file("scores", number), rows)
    return rows.num_rows


def _new_snapshot() -> str:
    return f"{SNAPSHOT}{uuid.uuid4().hex[:12]}"


def _finish(snapshot: Folder, rows: int, partitions: int, folded: Sequence[str]) -> None:
    manifest = {"rows": rows, "partitions": partitions, "folded": [*folded]}
    snapshot.write_json(MANIFEST, manifest)


def _delete(folder: Folder, names: Sequence[str]) -> None:
    with ThreadPoolExecutor(SIDE_BY_SIDE) as threads:
        list(threads.map(folder.delete, names))


def one_row_each(rows: pa.Table) -> pa.Table:
    """One row for each id, in their order. Two runs at once may both have scored a sample: any of
    its rows is right, the least is taken, one with scores before one without, and of these one
    that is not tried again."""
    measures = rows.schema.names[2:-2]
    ids, tried_again = id_array(rows), of_machine(rows)
    values = [rows[name].to_numpy() for name in reversed(measures)]  # NaN comes last
    order = np.lexsort((tried_again, *values, ids))
    first = np.append(True, ids[order][1:] != ids[order][:-1])[: len(ids)]
    return rows.combine_chunks().take(order[first])


def of_machine(rows: pa.Table) -> np.ndarray:
    """A mask: which rows have no scores because of the machine. They are tried again: the next one
    may be larger."""
    reasons = pa.array([KILLS_SCORER, OUT_OF_MEMORY])
    return np.asarray(pc.is_in(rows["reason"], value_set=reasons).combine_chunks())


def read_partition(
    folder: Folder, file: str, number: int, count: int, columns: list[str] | None = None
) -> pa.Table | None:
    """The rows of this partition of so many in a file of a snapshot; None where it is damaged: its
    samples then lack their scores."""
    low, high = partition_bounds(number, count)
    ids = pc.field("sample_id")
    within = ids >= low if high is None else (ids >= low) & (ids < high)
    try:
        return folder.read_table(file, columns, within)
    except DamagedFile:
        return None
