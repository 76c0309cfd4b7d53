"""Deduplicate the pool: drop or number exact duplicates, write the index, count.

The driver sees narrow receipts of all rows, partition by partition; the few parts that hold a
duplicate are written again.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray.data

from instructdiff_ray.pool.partition import HashPartitions
from instructdiff_ray.pool.pool import INDEX, POOL, REJECTS, reject_row
from instructdiff_ray.sample import Reject
from instructdiff_ray.storage.filesystem import Folder

# A row of a part: `block` counts the parts in source order, `row` the rows in one.
RECEIVED = pa.schema(
    [
        ("sample_id", pa.string()),
        ("domain", pa.string()),
        ("tokens", pa.int32()),
        ("response_tokens", pa.int32()),
        ("instruction_tokens", pa.int32()),
        ("truncated", pa.bool_()),
        ("block", pa.int32()),
        ("row", pa.int32()),
    ]
)
# New sample_id of a row of a block; None where the row goes to the rejects.
Changes = dict[int, dict[int, str | None]]


class Deduplicator:
    """Takes the receipt of every row, in source order, and decides what is in the pool."""

    def __init__(self, keep_duplicates: bool, folder: Folder) -> None:
        self.keep_duplicates = keep_duplicates
        self.folder = folder
        self.blocks: list[str] = []
        self.rejecting: list[int] = []
        self.read = 0
        self.reasons: Counter[str] = Counter()
        self.partitions = HashPartitions(RECEIVED)

    def add(self, receipt: pa.Table) -> None:
        """receipt: RECEIPT's columns, a row for each row read; blocks follow each other."""
        self.read += receipt.num_rows
        for block in pc.unique(receipt["block"]).to_pylist():
            rows = receipt.filter(pc.equal(receipt["block"], block))
            valid = rows.filter(pc.is_null(rows["reason"]))
            self.reasons.update(rows["reason"].drop_null().to_pylist())
            if valid.num_rows < rows.num_rows:
                self.rejecting.append(len(self.blocks))
            number = pa.array(np.full(valid.num_rows, len(self.blocks), np.int32))
            positions = pa.array(np.arange(valid.num_rows, dtype=np.int32))
            columns = valid.select(RECEIVED.names[:-2])
            self.partitions.add(
                columns.append_column("block", number).append_column("row", positions)
            )
            self.blocks.append(block)

    def finish(self) -> dict[str, Any]:
        """Drop or number duplicates, write the index, and give what the manifest notes."""
        with self.partitions:
            changes, info = self._write_index()
        dropping = [b for b, rows in changes.items() if None in rows.values()]
        self._rewrite_parts(changes)
        rejects = sorted({*self.rejecting, *dropping})
        return {
            "digest": info["digest"],
            "parts": [_part(self.blocks[b], b in changes) for b in info["blocks"]],
            "rejects": [_rejects(self.blocks[b], b in changes) for b in rejects],
            "counts": {
                "read": self.read,
                "rejected": dict(sorted(self.reasons.items())),
                "pool": info["pool"],
                "truncated": info["truncated"],
            },
        }

    def _write_index(self) -> tuple[Changes, dict[str, Any]]:
        changes: Changes = defaultdict(dict)
        ids_digest, domains_digest = hashlib.sha256(), hashlib.sha256()
        pool, truncated, blocks = 0, 0, set()
        with self.folder.open_table("index.parquet", INDEX) as write:
            for partition in self.partitions.read():
                rows = self._deduplicate(partition, changes)
                if rows.num_rows:
                    write(rows.select(INDEX.names).cast(INDEX))
                pool += rows.num_rows
                truncated += pc.sum(rows["truncated"]).as_py() or 0
                blocks.update(pc.unique(rows["block"]).to_pylist())
                for digest, name in ((ids_digest, "sample_id"), (domains_digest, "domain")):
                    digest.update("".join(f"{v}\n" for v in rows[name].to_pylist()).encode())
        both = hashlib.sha256(ids_digest.digest() + domains_digest.digest())
        info = {"pool": pool, "truncated": truncated, "blocks": sorted(blocks)}
        return changes, {"digest": both.hexdigest()[:16], **info}

    def _deduplicate(self, partition: pa.Table, changes: Changes) -> pa.Table:
        """The partition's samples, sorted by id; what was read again is numbered or dropped."""
        rows = partition.sort_by([(name, "ascending") for name in ("sample_id", "block", "row")])
        ids = rows["sample_id"].to_numpy()
        places = np.arange(len(ids))
        # Of equal samples the first one read stays: how many stand before a row in its group?
        starts = np.append(True, ids[1:] != ids[:-1])[: len(ids)]
        repeats = places - np.maximum.accumulate(np.where(starts, places, 0))
        again = np.flatnonzero(repeats)
        names = [f"{ids[i]}-{repeats[i]}" if self.keep_duplicates else None for i in again]
        moved = rows.take(again)
        for block, row, name in zip(
            moved["block"].to_pylist(), moved["row"].to_pylist(), names, strict=True
        ):
            changes[block][row] = name
        if not self.keep_duplicates:
            if len(again):
                self.reasons["duplicate"] += len(again)
            return rows.filter(pa.array(repeats == 0))
        new = ids.copy()
        new[again] = names
        return rows.set_column(0, RECEIVED.field(0), pa.array(new, pa.string())).sort_by(
            "sample_id"
        )

    def _rewrite_parts(self, changes: Changes) -> None:
        """Give the changed rows of each block their new ids; a row with None is a reject."""
        if not changes:
            return
        rejecting = set(self.rejecting)
        items: list[dict[str, Any]] = [
            {
                "block": self.blocks[block],
                "rows": list(rows),
                "ids": [name or "" for name in rows.values()],
                "rejects": block in rejecting,
            }
            for block, rows in changes.items()
        ]
        dataset = ray.data.from_items(items, override_num_blocks=len(items))
        for _ in dataset.map(partial(rewrite_part, folder=self.folder)).iter_batches(
            batch_size=None
        ):
            pass
        for item in items:
            self.folder.delete(_part(item["block"], False))
            if item["rejects"]:
                self.folder.delete(_rejects(item["block"], False))


def _part(block: str, rewritten: bool) -> str:
    return f"part-{block}{'-settled' if rewritten else ''}.parquet"


def _rejects(block: str, rewritten: bool) -> str:
    return f"rejects-{block}{'-settled' if rewritten else ''}.parquet"


def rewrite_part(item: dict[str, Any], folder: Folder) -> dict[str, Any]:
    """Write a block again under new names, so that a task that Ray repeats does no harm."""
    block = item["block"]
    old = folder.read_table(_part(block, False))
    ids: list[str | None] = old["sample_id"].to_pylist()
    for row, name in zip(item["rows"], item["ids"], strict=True):
        ids[row] = name or None
    keep = pa.array([name is not None for name in ids])
    new = old.set_column(0, POOL.field(0), pa.array(ids, pa.string()))
    if any(ids):
        folder.write_table(_part(block, True), new.filter(keep))
    dropped = old.filter(pc.invert(keep)).to_pylist()
    rejects = [
        reject_row(
            {**row, "text": row["source"]}, Reject("duplicate", f"same as {row['sample_id']}")
        )
        for row in dropped
    ]
    if item["rejects"]:
        rejects += folder.read_table(_rejects(block, False)).to_pylist()
    if rejects:
        rejects.sort(key=lambda row: (row["file"], row["line"]))
        folder.write_table(_rejects(block, True), pa.Table.from_pylist(rejects, REJECTS))
    return {"block": block}
