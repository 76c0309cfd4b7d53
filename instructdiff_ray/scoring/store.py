"""Where scores are kept: shards of what scorers have done, and the gathered scores of a pool."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray

from instructdiff_ray.errors import LostScores
from instructdiff_ray.pool.partition import id_array, partition_file
from instructdiff_ray.pool.pool import Pool, of_domain
from instructdiff_ray.pool.tasks import task
from instructdiff_ray.scoring.scored_rows import ScoredRows, scan
from instructdiff_ray.scoring.shards import one_row_each, shard_schema
from instructdiff_ray.scoring.spec import SCORES, ScoreSpec, ScoreTable
from instructdiff_ray.storage.artifacts import Artifact, FinishedArtifact, Storage, make_key
from instructdiff_ray.storage.filesystem import Folder

VERSION = 2  # of what scoring computes; raise it when the same tokens give other scores


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
    scorers = scorer_inputs(spec, precision)
    by_name = {str(domain): scorer for domain, scorer in scorers.items()}
    key_inputs = {
        "scorer": scorers.get(None) or by_name,
        "pool": pool.digest,
        "partitions": pool.partitions,  # of the index, in step with which scores are read
    }
    shards = {
        domain: storage.folder("pieces", make_key(**scorer)) for domain, scorer in scorers.items()
    }
    artifact = storage.artifact("scores", make_key(**key_inputs))
    return ScoreStore(spec, artifact, key_inputs, shards)


def scorer_inputs(spec: ScoreSpec, precision: str) -> dict[str | None, dict[str, Any]]:
    """What the keys of the shards are made of, by domain (None: all of them)."""
    return {
        domain: {
            "version": VERSION,
            "model": spec.model_of(domain).identity,
            "precision": precision,
            "rendering": spec.encoding.key_inputs(),
        }
        for domain in spec.domains()
    }


def gather(
    pool: Pool, shards: Mapping[str | None, Folder], measures: Sequence[str], target: Folder
) -> None:
    """Write the scores of the pool's samples into `target`, a file for each partition, in the
    index's order. shards: of each domain, or of all under None.

    Raises LostScores where a sample has none: a file was damaged.
    """

    def start(scored: Sequence[ScoredRows]) -> list[ray.ObjectRef]:
        gather_partition = task(_gather_partition)
        by_domain = ray.put(dict(zip(shards, scored, strict=True)))
        return [
            gather_partition(number, pool, by_domain, measures, target)
            for number in range(pool.partitions)
        ]

    try:
        scan(pool, [*shards.values()], start)
    except LostScores:  # perhaps a snapshot was passed over that holds a few of them
        scan(pool, [*shards.values()], start, every=True)


def _gather_partition(
    number: int,
    pool: Pool,
    scored: Mapping[str | None, ScoredRows],
    measures: Sequence[str],
    target: Folder,
) -> None:
    """scored: of each domain, or of all under None."""
    index, schema = pool.read_partition(number, ["sample_id", "domain"]), shard_schema(measures)
    ids, rows = id_array(index), [schema.empty_table()]
    for domain, shards in scored.items():
        wanted = ids if domain is None else ids[of_domain(index, domain)]
        table = shards.read(wanted, number, pool.partitions, schema.names)
        rows.append(one_row_each(table or schema.empty_table()))
    scores = pa.concat_tables(rows).sort_by("sample_id")
    if scores.num_rows < len(ids):
        raise LostScores("scores were damaged and are deleted; the same command makes them anew")
    target.write_table(partition_file(SCORES, number), scores)
