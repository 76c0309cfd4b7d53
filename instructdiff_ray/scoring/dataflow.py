"""The Ray Data pipeline of scoring: read → tokenise → score → write pieces."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.data import ActorPoolStrategy

from instructdiff_ray.config.run import Config
from instructdiff_ray.engine.throughput import Usage
from instructdiff_ray.models.encoding import Rendering
from instructdiff_ray.pool.partition import id_prefixes
from instructdiff_ray.pool.pool import Pool, among, read_pool, stream
from instructdiff_ray.sample import Part
from instructdiff_ray.scoring.actor import Scorer
from instructdiff_ray.scoring.blocks import encoded_columns
from instructdiff_ray.scoring.crash_guard import start_watch
from instructdiff_ray.scoring.plan import View
from instructdiff_ray.scoring.store import piece_schema, write_pieces

ROWS_PER_BATCH = 1024  # sorted by length together, and written as one piece


def score_blocks(
    config: Config, pool: Pool, views: Sequence[View], subset: np.ndarray | None
) -> Iterator[pa.Table]:
    """Scores the pool, or a subset (as in Tokenize), for all roles of the views; yields a receipt
    a block."""
    resources = config.cluster.score
    renderings = [view.rendering for view in views]
    tokenize = Tokenize(renderings, None if subset is None else ray.put(subset))
    dataset = (
        read_pool(pool, ["sample_id", "parts"])
        .map_batches(tokenize, batch_size=None, batch_format="pyarrow")
        # Ends the tokenising stage: only a strict repartition keeps Ray from fusing it into the
        # scoring actors, where a GPU would wait for it.
        .repartition(target_num_rows_per_block=ROWS_PER_BATCH, strict=True)
        .map_batches(
            Scorer,
            fn_constructor_kwargs={
                "views": views,
                "precision": config.cluster.precision,
                "tokens_per_batch": resources.tokens_per_batch,
                "actors_per_node": resources.max_actors,
                "gpus": resources.gpus_per_actor,
                "watch": start_watch(),
            },
            batch_size=ROWS_PER_BATCH,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(min_size=resources.min_actors, max_size=resources.max_actors),
            num_cpus=1,
            num_gpus=resources.gpus_per_actor or None,
            # A scorer that dies is started again and gets its block again, and the watch sees to it
            # that this ends.
            max_restarts=-1,
            max_task_retries=-1,
        )
        .map_batches(WritePieces(views), batch_size=None, batch_format="pyarrow")
    )
    return stream(dataset)


class Tokenize:
    """Pool rows to blocks of tokens (blocks.py); keeps those of `subset` (None: all).

    subset: a reference to the sorted prefixes of ids; of two samples that share one, both are kept.
    """

    def __init__(self, renderings: Sequence[Rendering], subset: Any) -> None:
        self.renderings = renderings
        self.subset = subset

    def __call__(self, batch: pa.Table) -> pa.Table:
        if self.subset is not None:
            wanted = among(id_prefixes(batch), ray.get(self.subset))
            batch = batch.filter(pa.array(wanted))
        samples = [[Part(**part) for part in parts] for parts in batch["parts"].to_pylist()]
        columns = {"sample_id": batch["sample_id"]}
        for number, rendering in enumerate(self.renderings):
            columns.update(encoded_columns(number, rendering.encode(samples)))
        return pa.table(columns)


class WritePieces:
    """Writes a block of scores as pieces of each role; gives the receipt, one row.

    samples, rejected: by view, how many were scored, and the reasons of those that were not.
    """

    def __init__(self, views: Sequence[View]) -> None:
        self.views = views

    def __call__(self, scores: pa.Table) -> pa.Table:
        rejected = [self._write(view, scores) for view in self.views]
        samples = [scores.num_rows - len(reasons) for reasons in rejected]
        return pa.table(
            {
                "samples": [samples],
                "rejected": pa.array([rejected], pa.list_(pa.list_(pa.string()))),
                "usage": [{f.name: pc.sum(scores[f.name]).as_py() for f in fields(Usage)}],
            }
        )

    def _write(self, view: View, scores: pa.Table) -> list[str]:
        """Gives the reasons of the samples that some role has not scored."""
        schema = piece_schema(view.rendering.measures)
        reasons: list[str | None] = [None] * scores.num_rows
        for role, folder in view.pieces.items():
            columns = [scores[f"{role}_{name}"] for name in schema.names[1:]]
            write_pieces(folder, pa.table([scores["sample_id"], *columns], schema=schema))
            told = scores[f"{role}_reason"].to_pylist()
            reasons = [a or b for a, b in zip(reasons, told, strict=True)]
        return [reason for reason in reasons if reason]
