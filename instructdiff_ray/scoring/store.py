"""Where scores are kept: shards of what scorers have done, and the gathered scores of a pool.

A shard holds a batch of scores under one model and appears whole. Rows that could not be scored
stand in shards of their own, `rejects-*.parquet`. Those that a machine was to blame for are tried
again when scores are next computed. On disk shards are called pieces.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from instructdiff_ray.errors import DamagedFile
from instructdiff_ray.pool.partition import HashPartitions, among, id_array, partition_numbers
from instructdiff_ray.pool.pool import Pool, of_domain
from instructdiff_ray.scoring.spec import SCORES, ScoreSpec, ScoreTable
from instructdiff_ray.storage.artifacts import Artifact, FinishedArtifact, Storage, make_key
from instructdiff_ray.storage.filesystem import Folder

VERSION = 2  # of what scoring computes; raise it when the same tokens give other scores
READ_AHEAD = 32


@dataclass(frozen=True)
class ScoreStore:
    """Where the scores of one spec over one pool are or will be.

    artifact: the gathered scores; key_inputs: what its key is made of.
    shards: by domain (None: all of them), the folder that scorers write to.
    """

    spec: ScoreSpec
    artifact: Artifact
    key_inputs: dict[str, Any]
    shards: dict[str | None, Folder]

    def shards_of(self, domain: str | None) -> Folder:
        return self.shards[domain if domain in self.shards else None]

    def table(self, finished: FinishedArtifact) -> ScoreTable:
        return ScoreTable(finished, self.spec.encoding.measures)


def score_stores(
    specs: Sequence[ScoreSpec], pool: Pool, precision: str, storage: Storage
) -> list[ScoreStore]:
    """The store of each spec. precision: fp32 | bf16, of the models' matrix products."""
    return [_score_store(spec, pool, precision, storage) for spec in specs]


def _score_store(spec: ScoreSpec, pool: Pool, precision: str, storage: Storage) -> ScoreStore:
    scorers = {
        domain: {
            "version": VERSION,
            "model": spec.model_of(domain).identity,
            "precision": precision,
            "rendering": spec.encoding.key_inputs(),
        }
        for domain in spec.domains()
    }
    by_name = {str(domain): scorer for domain, scorer in scorers.items()}
    key_inputs = {"scorer": scorers.get(None) or by_name, "pool": pool.digest}
    shards = {
        domain: storage.folder("pieces", make_key(**scorer)) for domain, scorer in scorers.items()
    }
    artifact = storage.artifact("scores", make_key(**key_inputs))
    return ScoreStore(spec, artifact, key_inputs, shards)


def shard_schema(measures: Sequence[str]) -> pa.Schema:
    """The measures are null, and reason and detail are not, where a sample could not be scored."""
    return pa.schema(
        [("sample_id", pa.string()), ("response_tokens", pa.int32())]
        + [(measure, pa.float64()) for measure in measures]
        + [("reason", pa.string()), ("detail", pa.string())]
    )


def write_shards(folder: Folder, scores: pa.Table) -> None:
    """Write scores: one shard of those that were scored, one of those that were not."""
    scored = pc.is_null(scores["reason"])
    for kind, rows in (
        ("piece", scores.filter(scored)),
        ("rejects", scores.filter(pc.invert(scored))),
    ):
        if rows.num_rows:
            folder.write_table(f"{kind}-{uuid.uuid4().hex}.parquet", rows)


def read_shards(folder: Folder, schema: pa.Schema) -> HashPartitions:
    """All rows of all shards, with the schema's columns. A damaged shard is deleted, and its rows
    are missing."""
    partitions = HashPartitions(schema)
    names = iter(sorted(name for name in folder.sizes() if name.endswith(".parquet")))

    def read(name: str) -> pa.Table:
        try:
            return folder.read_table(name)  # whole, or damage elsewhere goes unnoticed
        except (DamagedFile, FileNotFoundError):  # another run that noticed it has deleted it
            return schema.empty_table()

    # Thousands of small files: in an object store each is a wait of its own.
    with ThreadPoolExecutor(READ_AHEAD) as threads:
        while batch := list(islice(names, READ_AHEAD)):
            for table in threads.map(read, batch):
                partitions.add(table)
    return partitions


def aligned(pool: Pool, *others: HashPartitions) -> Iterator[tuple[pa.Table, ...]]:
    """Each partition of the pool's index, with the same partition of the others."""
    index = pool.index()
    rows = next(index, None)
    for number, tables in enumerate(zip(*(other.read() for other in others), strict=True)):
        if rows is not None and partition_numbers(rows.slice(0, 1))[0] == number:
            yield rows, *tables
            rows = next(index, None)
    assert rows is None, "the index is not in the order of partitions"


def gather(
    pool: Pool, shards: Mapping[str | None, Folder], measures: Sequence[str], target: Folder
) -> None:
    """Write `scores.parquet`: one row for each sample of the pool, in the index's order.

    shards: of each domain, or of all under None. Two runs at once may both have scored a sample:
    any of its rows is right, the least is taken, so that the choice does not depend on file names.
    """
    schema = shard_schema(measures)
    with ExitStack() as stack:
        write = stack.enter_context(target.open_table(SCORES, schema))
        scored = [stack.enter_context(read_shards(folder, schema)) for folder in shards.values()]
        for index, *tables in aligned(pool, *scored):
            ids, rows = id_array(index), []
            for domain, table in zip(shards, tables, strict=True):
                mask = np.full(len(ids), True) if domain is None else of_domain(index, domain)
                rows.append(_rows_of(table, ids[mask], measures))
            scores = pa.concat_tables(rows)
            write((scores if len(rows) == 1 else scores.sort_by("sample_id")).combine_chunks())


def _rows_of(table: pa.Table, ids: np.ndarray, measures: Sequence[str]) -> pa.Table:
    """The row of each id, in their order. Raises DamagedFile where one is missing."""
    scored = id_array(table)
    order = np.lexsort((*(table[name].to_numpy() for name in reversed(measures)), scored))
    unique, first = np.unique(scored[order], return_index=True)
    if not among(ids, unique).all():
        raise DamagedFile("a piece was damaged and is deleted; the same command goes on")
    return table.take(order[first[np.searchsorted(unique, ids)]])
