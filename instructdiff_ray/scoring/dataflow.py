"""The Ray Data pipeline of scoring: read → tokenise → score → write shards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.data import ActorPoolStrategy

from instructdiff_ray.config.run import Config
from instructdiff_ray.engine.throughput import Throughput
from instructdiff_ray.models.encoding import EncoderSpec
from instructdiff_ray.pool.dataset import read_pool, stream
from instructdiff_ray.pool.partition import among, id_prefixes
from instructdiff_ray.pool.pool import Pool
from instructdiff_ray.sample import Part
from instructdiff_ray.scoring.actor import Scorer
from instructdiff_ray.scoring.blocks import encoded_columns
from instructdiff_ray.scoring.crash_guard import start_crash_guard
from instructdiff_ray.scoring.plan import ScorePass, ScoreTarget, Targets, by_encoding
from instructdiff_ray.scoring.store import shard_schema, write_shards

ROWS_PER_BATCH = 1024  # sorted by length together, and written as one shard


def score_blocks(
    config: Config, pool: Pool, scoring_pass: ScorePass, gpus: float
) -> Iterator[pa.Table]:
    """Scores what the pass is to score, by actors of so many GPUs; yields a receipt for each
    block."""
    resources, targets, prefixes = config.cluster.score, scoring_pass.targets, scoring_pass.prefixes
    # Of GPUs, where the user did not say how many an actor has.
    share = gpus if resources.gpus_per_actor is None else 1
    most_actors = max(resources.min_actors, int(resources.max_actors / share))
    tokenize = Tokenize(list(by_encoding(targets)), None if prefixes is None else ray.put(prefixes))
    dataset = (
        read_pool(pool, ["sample_id", "parts"])
        .map_batches(tokenize, batch_size=None, batch_format="pyarrow")
        # Ends the tokenising stage: only a strict repartition keeps Ray from fusing it into the
        # scoring actors, where a GPU would wait for it.
        .repartition(target_num_rows_per_block=ROWS_PER_BATCH, strict=True)
        .map_batches(
            Scorer,
            fn_constructor_kwargs={
                "targets": targets,
                "precision": config.cluster.precision,
                "tokens_per_batch": resources.tokens_per_batch,
                "actors_per_node": resources.max_actors,
                "gpus": gpus,
                "guard": start_crash_guard(),
            },
            batch_size=ROWS_PER_BATCH,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(min_size=resources.min_actors, max_size=most_actors),
            num_cpus=1,
            num_gpus=gpus or None,
            # A scorer that dies is started again and gets its block again, and the crash guard sees
            # to it that this ends.
            max_restarts=-1,
            max_task_retries=-1,
        )
        .map_batches(WriteShards(targets), batch_size=None, batch_format="pyarrow")
    )
    return stream(dataset)


class Tokenize:
    """Pool rows to blocks of tokens (blocks.py).

    prefixes: a reference to the sorted prefixes of the ids to keep (None: all); of two samples that
        share one, both are kept.
    """

    def __init__(self, encodings: Sequence[EncoderSpec], prefixes: Any) -> None:
        self.encodings = encodings
        self.prefixes = prefixes

    def __call__(self, batch: pa.Table) -> pa.Table:
        if self.prefixes is not None:
            wanted = among(id_prefixes(batch), ray.get(self.prefixes))
            batch = batch.filter(pa.array(wanted))
        samples = [[Part(**part) for part in parts] for parts in batch["parts"].to_pylist()]
        columns = {"sample_id": batch["sample_id"]}
        for number, encoding in enumerate(self.encodings):
            columns.update(encoded_columns(number, encoding.encode(samples)))
        return pa.table(columns)


class WriteShards:
    """Writes a block of scores as shards of each target; gives the receipt, one row.

    samples, rejected: by encoding, how many were scored, and the reasons of those that were not;
    forward_passes: how each target's were scored, in their order.
    """

    def __init__(self, targets: Targets) -> None:
        self.targets = targets

    def __call__(self, scores: pa.Table) -> pa.Table:
        rejected = [self._write(group, scores) for group in by_encoding(self.targets).values()]
        samples = [scores.num_rows - len(reasons) for reasons in rejected]
        throughput = {f.name: pc.sum(scores[f.name]).as_py() for f in fields(Throughput)}
        return pa.table(
            {
                "samples": [samples],
                "rejected": pa.array([rejected], pa.list_(pa.list_(pa.string()))),
                "throughput": [throughput],
                "forward_passes": [
                    [scores[f"{target.name}_forward_pass"][0].as_py() for target in self.targets]
                ],
            }
        )

    def _write(self, targets: Sequence[ScoreTarget], scores: pa.Table) -> list[str]:
        """Gives the reasons of the samples that lack some target's score."""
        reasons: list[str | None] = [None] * scores.num_rows
        for target in targets:
            schema = shard_schema(target.encoding.measures)
            columns = [scores[f"{target.name}_{name}"] for name in schema.names[1:]]
            write_shards(target.shards, pa.table([scores["sample_id"], *columns], schema=schema))
            of_target = scores[f"{target.name}_reason"].to_pylist()
            reasons = [a or b for a, b in zip(reasons, of_target, strict=True)]
        return [reason for reason in reasons if reason]
