"""The pool: all valid samples of the source files, as an artifact, and its index."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from instructdiff_ray.errors import UserError
from instructdiff_ray.pool.partition import among, id_array, partition_file
from instructdiff_ray.pool.sampling import draw
from instructdiff_ray.sample import Reject
from instructdiff_ray.storage.artifacts import FinishedArtifact
from instructdiff_ray.storage.filesystem import Folder

PARTS = pa.list_(pa.struct([("kind", pa.string()), ("text", pa.string())]))
# A row of a file of the pool: a sample, or a reject, which has a reason and no sample_id.
ROWS = pa.schema(
    [
        ("sample_id", pa.string()),
        ("domain", pa.string()),
        ("parts", PARTS),
        ("tokens", pa.int32()),
        ("response_tokens", pa.int32()),
        ("instruction_tokens", pa.int32()),
        ("truncated", pa.bool_()),
        ("source", pa.large_string()),
        ("file", pa.string()),
        ("line", pa.int64()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)
REJECTS = pa.schema(
    [
        ("file", pa.string()),
        ("line", pa.int64()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("source", pa.large_string()),
    ]
)
# Samples that go: where they stand, the id of the one that stays, and how many equal ones were read
# before them. Of near-duplicates this is 0.
DUPLICATES = pa.schema(
    [
        ("part", pa.int32()),
        ("row", pa.int32()),
        ("sample_id", pa.string()),
        ("repeat", pa.int32()),
    ]
)
DUPLICATES_FILE, REJECTS_FILE = "duplicates.parquet", "rejects.parquet"
# Enough of a rejected row to see what it was; file and line lead to the whole.
REJECT_SOURCE_CHARACTERS = 10_000
# One row a sample, sorted by sample_id, a file for each partition: all that is needed to sample,
# align and select. `tokens` counts all that a model sees, `instruction_tokens` the question without
# the template.
INDEX = pa.schema(
    [
        ("sample_id", pa.string()),
        ("domain", pa.dictionary(pa.int32(), pa.string())),
        ("tokens", pa.int32()),
        ("response_tokens", pa.int32()),
        ("instruction_tokens", pa.int32()),
    ]
)


@dataclass(frozen=True)
class Split:
    """A share of a pool, drawn by a hash of the ids, or the rest of it.

    A sample stays on its side when the pool grows.
    """

    ratio: float
    seed: int
    held_out: bool

    def mask(self, index: pa.Table) -> np.ndarray:
        """Which rows of the index are in it."""
        limit, key = int(self.ratio * 2**64), f"split {self.seed}"
        # Kept duplicates, `<id>-1` and so on, stay together.
        draws = (draw(i.partition("-")[0], key) for i in index["sample_id"].to_pylist())
        return np.array([(number < limit) == self.held_out for number in draws], dtype=bool)


@dataclass(frozen=True)
class Pool:
    """A finished pool, or a part of one.

    folder: holds the parts, the index and the rejects; parts: their names, in source order.
    digest: hash of all (sample_id, domain), whatever their order: the pool's identity downstream,
        so that moving or reordering files repeats no model's work.
    partitions: how many the index has.
    keep_duplicates: whether samples that were read before have a number, or are no samples.
    counts: read, rejected by reason, pool, truncated.
    split: None: all of it.
    """

    folder: Folder
    key: str
    digest: str
    parts: list[str]
    partitions: int
    keep_duplicates: bool
    counts: dict[str, Any]
    split: Split | None = None

    def index(self, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """The index, or some columns of it, a partition at a time, in the order of sample_id."""
        for number in range(self.partitions):
            yield self.read_partition(number, columns)

    def read_partition(self, number: int, columns: list[str] | None = None) -> pa.Table:
        """A partition of the index, sorted by sample_id."""
        name, wanted = partition_file("index", number), columns or INDEX.names
        if self.split is None:
            return self.folder.read_table(name, wanted)
        table = self.folder.read_table(name, [*dict.fromkeys(["sample_id", *wanted])])
        return table.filter(pa.array(self.split.mask(table))).select(wanted)

    def duplicates(self) -> pa.Table:
        """The rows that were read before, as DUPLICATES, in source order."""
        return self.folder.read_table(DUPLICATES_FILE).combine_chunks()

    def divide(self, ratio: float, seed: int) -> tuple[Pool, Pool]:
        """About `ratio` of the pool, held out, and the rest. UserError where one is empty."""
        parts = []
        for held_out in (True, False):
            split = Split(ratio, seed, held_out)
            digest = hashlib.sha256(f"{self.digest} {split}".encode()).hexdigest()[:16]
            part = replace(self, digest=digest, split=split)
            count = sum(table.num_rows for table in part.index(["sample_id"]))
            if not count:
                raise UserError(
                    f"a pool of {len(self):,} samples can't be divided at evaluate.holdout={ratio};"
                    " it needs some on both sides"
                )
            parts.append(replace(part, counts={**self.counts, "pool": count}))
        return parts[0], parts[1]

    def ids(self) -> Iterator[str]:
        """Every sample_id, in order."""
        for table in self.index(["sample_id"]):
            yield from table["sample_id"].to_pylist()

    def domains(self) -> dict[str, int]:
        """Samples of each domain, by its name, in the names' order."""
        counted: Counter[str] = Counter()
        for table in self.index(["domain"]):
            for domain in pc.value_counts(table["domain"].cast(pa.string())).to_pylist():
                counted[domain["values"]] += domain["counts"]
        return dict(sorted(counted.items()))

    def by_domain(self, sample_ids: Collection[str]) -> dict[str, list[str]]:
        """Those of these ids that are of each domain, sorted."""
        wanted = np.array(sorted(sample_ids), "S")
        ids: dict[str, list[str]] = {name: [] for name in self.domains()}
        for table in self.index(["sample_id", "domain"]):
            for row in table.filter(pa.array(among(id_array(table), wanted))).to_pylist():
                ids[row["domain"]].append(row["sample_id"])
        return ids

    def __len__(self) -> int:
        return int(self.counts["pool"])


def open_pool(finished: FinishedArtifact) -> Pool:
    """The pool of a finished artifact."""
    info = finished.info
    return Pool(
        finished.folder,
        finished.key,
        info["digest"],
        info["parts"],
        info["partitions"],
        info["keep_duplicates"],
        info["counts"],
    )


def of_domain(index: pa.Table, domain: str) -> np.ndarray:
    """A mask: which rows of the index are of this domain."""
    mask = pc.equal(index["domain"].cast(pa.string()), domain)
    return np.asarray(mask.to_numpy(zero_copy_only=False))


def reject_row(row: Mapping[str, Any], reject: Reject) -> dict[str, Any]:
    """A row of REJECTS. row: `file`, `line` and `text` of what was read."""
    return {
        "file": row["file"],
        "line": row["line"],
        "reason": reject.reason,
        "detail": reject.detail,
        "source": row["text"][:REJECT_SOURCE_CHARACTERS],
    }
