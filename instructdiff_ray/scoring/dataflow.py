"""The Ray Data pipeline of scoring: read → tokenise → score → write pieces."""

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
from instructdiff_ray.scoring.shards import shard_schema, write_piece

# Rows of a block are sorted by length together, and written as one piece of each model's scores:
# what is lost with a machine. A GPU should work on one for some seconds, or there are as many files
# as seconds; operations a second are those of a large GPU that does well.
ROWS_PER_BATCH, MOST_ROWS_PER_BATCH = 1024, 16384
SECONDS_PER_BATCH, GPU_OPERATIONS_PER_S = 20, 3e14


def score_blocks(
    config: Config, pool: Pool, scoring_pass: ScorePass, gpus: float
) -> Iterator[pa.Table]:
    """Scores what the pass is to score, by actors of so many GPUs; yields a receipt for each
    block."""
    resources, targets, prefixes = config.cluster.score, scoring_pass.targets, scoring_pass.prefixes
    # Of GPUs, where the user did not say how many an actor has.
    share = gpus if resources.gpus_per_actor is None else 1
    most_actors = max(resources.min_actors, int(resources.max_actors / share))
    rows = rows_per_batch(scoring_pass, gpus, most_actors)
    tokenize = Tokenize(list(by_encoding(targets)), prefixes)
    dataset = (
        read_pool(pool, ["sample_id", "parts"])
        .map_batches(tokenize, batch_size=None, batch_format="pyarrow")
        # Ends the tokenising stage: only a strict repartition keeps Ray from fusing it into the
        # scoring actors, where a GPU would wait for it.
        .repartition(target_num_rows_per_block=rows, strict=True)
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
            batch_size=rows,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(min_size=resources.min_actors, max_size=most_actors),
            num_cpus=1,
            num_gpus=gpus or None,
            # A scorer that dies is started again and gets its block again, and the crash guard sees
            # to it that this ends.
            max_restarts=-1,
            max_task_retries=-1,
        )
        .map_batches(WritePieces(targets), batch_size=None, batch_format="pyarrow")
    )
    # Beside scorers on GPUs, reading, tokenising and writing may take the CPUs of their machines,
    # most of which are idle. It is not for the network, which the few MB/s of tokens that 8 GPUs
    # ask for would not fill: another machine would have to be there all the time.
    return stream(dataset, f"score {', '.join(target.name for target in targets)}", gpus)


def rows_per_batch(scoring_pass: ScorePass, gpus: float, actors: int) -> int:
    """Rows of a block: as many as keep an actor of so many GPUs busy for SECONDS_PER_BATCH, and a
    quarter of an actor's share at most; on processors ROWS_PER_BATCH."""
    if not gpus:
        return ROWS_PER_BATCH
    parameters = max(target.model.parameters() for target in scoring_pass.targets)
    operations = 2 * parameters * scoring_pass.tokens / scoring_pass.samples
    rows = SECONDS_PER_BATCH * GPU_OPERATIONS_PER_S * gpus / operations
    most = min(MOST_ROWS_PER_BATCH, scoring_pass.samples // (4 * actors))
    return max(ROWS_PER_BATCH, int(min(rows, most)))


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


class WritePieces:
    """Writes a block of scores as a piece for each target; gives the receipt, one row.

    pieces: name and bytes of each target's, in their order;
    samples, rejected: by encoding, how many were scored, and the reasons of those that were not;
    forward_passes, tokens: how each target's were scored, and of how many tokens, in their order.
    """

    def __init__(self, targets: Targets) -> None:
        self.targets = targets

    def __call__(self, scores: pa.Table) -> pa.Table:
        pieces = {target.name: self._write(target, scores) for target in self.targets}
        rejected = [_reasons(group, scores) for group in by_encoding(self.targets).values()]
        samples = [scores.num_rows - len(reasons) for reasons in rejected]
        throughput = {f.name: pc.sum(scores[f.name]).as_py() for f in fields(Throughput)}
        return pa.table(
            {
                "pieces": [[pieces[target.name] for target in self.targets]],
                "samples": [samples],
                "rejected": pa.array([rejected], pa.list_(pa.list_(pa.string()))),
                "throughput": [throughput],
                "tokens": [[pc.sum(scores[f"{t.name}_tokens"]).as_py() for t in self.targets]],
                "forward_passes": [
                    [scores[f"{target.name}_forward_pass"][0].as_py() for target in self.targets]
                ],
            }
        )

    def _write(self, target: ScoreTarget, scores: pa.Table) -> dict[str, str | int]:
        schema = shard_schema(target.encoding.measures)
        columns = [scores[f"{target.name}_{name}"] for name in schema.names[1:]]
        table = pa.table([scores["sample_id"], *columns], schema=schema)
        name, size = write_piece(target.shards, table)
        return {"name": name, "size": size}


def _reasons(targets: Sequence[ScoreTarget], scores: pa.Table) -> list[str]:
    """Of the samples that lack some target's score."""
    columns = [scores[f"{target.name}_reason"] for target in targets]
    return [reason for reason in pc.coalesce(*columns).to_pylist() if reason]
