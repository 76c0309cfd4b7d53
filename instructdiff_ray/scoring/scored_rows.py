"""The scores that shards hold of a pool, read by partition.

A reader takes of each snapshot the files, and of these the row groups, that hold its range of ids,
and passes over snapshots that share no sample with its pool.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import ray

from instructdiff_ray.errors import DamagedFile, UserError
from instructdiff_ray.pool.partition import among, id_array, partition_bounds
from instructdiff_ray.pool.pool import Pool
from instructdiff_ray.pool.tasks import results
from instructdiff_ray.scoring.shards import (
    FAN_IN,
    SIDE_BY_SIDE,
    Shards,
    Snapshot,
    fold,
    merge,
    read_partition,
    read_piece,
    to_merge,
)
from instructdiff_ray.storage.filesystem import Folder

ATTEMPTS, PAUSE_S = 5, 1.0  # at a scan, where others merge what it reads
Result = TypeVar("Result")
LEAST_SAMPLES = 64  # by which it is told whether a snapshot shares samples with a pool


def scan(
    pool: Pool,
    folders: Sequence[Folder],
    work: Callable[[Sequence[ScoredRows]], Sequence[ray.ObjectRef]],
    every: bool = False,
) -> list[Any]:
    """The results of the tasks that `work` starts, which read what these folders hold of the pool.

    All pieces are folded first. Another run may merge a snapshot while it is read here: then this
    is done again, with what has become of it. every: also snapshots that seem to share no sample
    with the pool.
    """
    return steadily(
        lambda: results(work([_folded(pool, folder, every) for folder in folders])), folders
    )


def steadily(read: Callable[[], Result], folders: Sequence[Folder]) -> Result:
    """What is read of these folders, once no other run merges what is there."""
    for _ in range(ATTEMPTS):
        try:
            return read()
        except FileNotFoundError:
            time.sleep(PAUSE_S)
    raise UserError(
        f"other runs are merging the scores in {folders[0].path}; give the same command again"
    )


def _folded(pool: Pool, folder: Folder, every: bool) -> ScoredRows:
    """What a folder holds of a pool, in few snapshots. Those of other pools are not merged with
    them, or they would be read with them."""
    shards = fold(folder)
    scored = ScoredRows.of(pool, shards)
    while merging := to_merge(scored.snapshots):
        merge(folder, merging)
        shards = Shards(folder)
        scored = ScoredRows.of(pool, shards)
    return ScoredRows(folder, shards.snapshots) if every else scored


@dataclass(frozen=True)
class ScoredRows:
    """The snapshots of a folder that share samples with a pool.

    pieces: some columns of what was not folded yet.
    """

    folder: Folder
    snapshots: Sequence[Snapshot]
    pieces: pa.Table | None = None

    @classmethod
    def unfolded(cls, pool: Pool, folder: Folder, columns: list[str]) -> ScoredRows:
        """What a folder holds of a pool, as it is: nothing is folded or merged."""
        shards = Shards(folder)
        with ThreadPoolExecutor(SIDE_BY_SIDE) as threads:
            tables = [*threads.map(lambda name: read_piece(folder, name, columns), shards.pieces)]
        tables = [table for table in tables if table is not None]
        snapshots = cls.of(pool, shards).snapshots
        return cls(folder, snapshots, pa.concat_tables(tables) if tables else None)

    @classmethod
    def of(cls, pool: Pool, shards: Shards) -> ScoredRows:
        if not shards.snapshots:
            return cls(shards.folder, [])
        head = id_array(pool.read_partition(0, ["sample_id"]))
        _, bound = partition_bounds(0, pool.partitions)
        return cls(
            shards.folder,
            [s for s in shards.snapshots if _overlaps(shards.folder, s, head, bound)],
        )

    def read(self, ids: np.ndarray, number: int, count: int, columns: list[str]) -> pa.Table | None:
        """The rows of these ids, which are sorted and of this partition of so many; in no order,
        and of an id perhaps several. None where there are none."""
        files = [file for each in self.snapshots for file in each.files_of(number, count)]

        def read(file: str) -> pa.Table | None:
            table = read_partition(self.folder, file, number, count, columns)
            return table and table.filter(pa.array(among(id_array(table), ids)))

        with ThreadPoolExecutor(FAN_IN) as threads:
            tables = [table for table in threads.map(read, files) if table is not None]
        if self.pieces is not None:
            pieces = self.pieces.select(columns)
            tables.append(pieces.filter(pa.array(among(id_array(pieces), ids))))
        return pa.concat_tables(tables) if tables else None


def _overlaps(folder: Folder, snapshot: Snapshot, head: np.ndarray, bound: str | None) -> bool:
    """Whether a snapshot shares samples with a pool, as far as the least ids of both tell.

    head: the pool's ids below `bound` (None: all of them). Both lists are cut to the ids that both
    could hold: those below the bound, and up to the last that is read of the snapshot. Ids are
    hashes, so what holds of these holds of nearly all: a few samples of a pool, folded together
    with many of another, can be missed. Where the ids are too few to tell it counts as sharing.
    """
    if snapshot.file(0) not in snapshot.files:
        return True
    try:
        ids, whole_file = folder.read_head(snapshot.file(0), ["sample_id"])
    except DamagedFile:
        return True
    of_snapshot, of_pool = id_array(ids), head
    whole_snapshot, whole_pool = whole_file and snapshot.partitions == 1, bound is None
    if len(of_snapshot) and not whole_snapshot:
        of_pool = head[head <= of_snapshot[-1]]
        whole_pool &= len(of_pool) == len(head)
    if bound is not None:
        below = of_snapshot[of_snapshot < bound.encode()]
        whole_snapshot &= len(below) == len(of_snapshot)
        of_snapshot = below
    few = min(len(of_snapshot), len(of_pool)) < LEAST_SAMPLES
    if few and not whole_snapshot and not whole_pool:
        return True
    return bool(among(of_pool, of_snapshot).any())
