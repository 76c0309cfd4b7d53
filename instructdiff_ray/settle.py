"""Settle the pool: drop or number exact duplicates, write the index, count.

The driver sees narrow receipts of all rows; the few parts that hold a duplicate are written again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container, Mapping
from functools import partial
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import ray.data

from instructdiff_ray.pool import INDEX, POOL, REJECTS
from instructdiff_ray.samples import Reject
from instructdiff_ray.storage import Folder

# Enough of a rejected row to see what it was; file and line lead to the whole.
REJECT_SOURCE_CHARACTERS = 10_000


def settle_pool(receipts: pa.Table, keep_duplicates: bool, folder: Folder) -> dict[str, Any]:
    """Settle duplicates, write the index, and give what the manifest notes.

    receipts: a row for each row read, in source order: RECEIPT's columns.
    """
    rows = receipts.to_pandas()
    valid = rows["reason"].isna()
    # Receipts stand in source order, so of equal samples the first one read stays.
    repeats = rows[valid].groupby("sample_id").cumcount().reindex(rows.index, fill_value=0)
    repeated = repeats > 0
    if keep_duplicates:
        rows.loc[repeated, "sample_id"] += "-" + repeats[repeated].astype(str)
    else:
        rows.loc[repeated, "reason"] = "duplicate"
    changed = rows[valid & rows["block"].isin(rows.loc[repeated, "block"].unique())]
    fates = {
        block: [
            name if kept else None
            for name, kept in zip(group["sample_id"], group["reason"].isna(), strict=True)
        ]
        for block, group in changed.groupby("block")
    }
    _rewrite_parts(fates, folder)
    pool = rows[rows["reason"].isna()]
    digest = _write_index(pool, folder)
    rejected = rows["reason"].dropna()
    return {
        "digest": digest,
        "parts": [_part(block, fates) for block in pool["block"].unique()],
        "rejects": [_rejects(block, fates) for block in rows["block"][rejected.index].unique()],
        "counts": {
            "read": len(rows),
            "rejected": {str(k): int(v) for k, v in rejected.value_counts().sort_index().items()},
            "pool": len(pool),
            "truncated": int(pool["truncated"].sum()),
        },
    }


def _part(block: str, rewritten: Container[str]) -> str:
    return f"part-{block}{'-settled' if block in rewritten else ''}.parquet"


def _rejects(block: str, rewritten: Container[str]) -> str:
    return f"rejects-{block}{'-settled' if block in rewritten else ''}.parquet"


def _rewrite_parts(fates: Mapping[str, list[str | None]], folder: Folder) -> None:
    """Give the rows of each block their settled ids; a row with None becomes a reject."""
    if not fates:
        return
    items = [{"block": block, "ids": ids} for block, ids in fates.items()]
    dataset = ray.data.from_items(items, override_num_blocks=len(items))
    for _ in dataset.map(partial(rewrite_part, folder=folder)).iter_batches(batch_size=None):
        pass


def rewrite_part(item: dict[str, Any], folder: Folder) -> dict[str, Any]:
    """Write a block again under new names, so that a task that Ray repeats does no harm."""
    block, ids = item["block"], list(item["ids"])
    old = folder.read_table(_part(block, ()))
    keep = pa.array([value is not None for value in ids])
    new = old.set_column(0, POOL.field(0), pa.array(ids, pa.string()))
    if any(ids):
        folder.write_table(_part(block, {block}), new.filter(keep))
    dropped = old.filter(pc.invert(keep)).to_pylist()
    rejects = [
        reject_row(
            {**row, "text": row["source"]}, Reject("duplicate", f"same as {row['sample_id']}")
        )
        for row in dropped
    ]
    names = folder.sizes()
    if _rejects(block, ()) in names:
        rejects += folder.read_table(_rejects(block, ())).to_pylist()
    if rejects:
        rejects.sort(key=lambda row: (row["file"], row["line"]))
        folder.write_table(_rejects(block, {block}), pa.Table.from_pylist(rejects, REJECTS))
    return {"block": block}


def _write_index(pool: pd.DataFrame, folder: Folder) -> str:
    """Write `index.parquet`; gives the digest of the pool's ids and domains."""
    index = pa.Table.from_pandas(
        pool[INDEX.names].sort_values("sample_id"), INDEX, preserve_index=False
    )
    folder.write_table("index.parquet", index)
    digest = hashlib.sha256()
    for batch in index.to_batches(max_chunksize=1 << 16):
        for name in ("sample_id", "domain"):
            digest.update("\n".join(batch[name].to_pylist()).encode() + b"\n")
    return digest.hexdigest()[:16]


def reject_row(row: Mapping[str, Any], reject: Reject) -> dict[str, Any]:
    """A row of REJECTS. row: `file`, `line` and `text` of what was read."""
    return {
        "file": row["file"],
        "line": row["line"],
        "reason": reject.reason,
        "detail": reject.detail,
        "source": row["text"][:REJECT_SOURCE_CHARACTERS],
    }
