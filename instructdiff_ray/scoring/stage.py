"""Score: the pool under one or several models, with Ray Data.

Two kinds of things are kept. *Pieces* belong to a scorer (model, rendering, precision) and hold the
scores of a batch of samples each; they appear whole, while the job runs, and serve whatever pool
holds these samples: a job that died goes on, a pool that grew scores only what is new. From them
the *scores* artifact is gathered: one row for each sample of one pool, in the order of its index,
complete, or not there at all.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import pyarrow as pa

from instructdiff_ray.config.run import Config
from instructdiff_ray.engine.throughput import Usage
from instructdiff_ray.models.encoding import Rendering
from instructdiff_ray.pool.pool import Pool, check_rejects
from instructdiff_ray.progress import Progress, Stage
from instructdiff_ray.scoring.dataflow import score_blocks
from instructdiff_ray.scoring.forwards import Forward, Place, find_places, finished_scores
from instructdiff_ray.scoring.plan import View, all_passes
from instructdiff_ray.scoring.store import gather
from instructdiff_ray.storage.artifacts import Finished, Storage


@dataclass
class Work:
    """What scoring cost in this command.

    samples: forward passes by role; usage: of all scorers.
    """

    samples: dict[str, int] = field(default_factory=lambda: {"base": 0, "calibrated": 0})
    usage: Usage = field(default_factory=Usage)

    @property
    def tokens(self) -> int:
        """Prompt and response, counted once for each model."""
        return round(self.usage.tokens)


def score(
    config: Config,
    pool: Pool,
    forwards: Mapping[str, Forward],
    storage: Storage,
    progress: Progress,
    work: Work,
) -> dict[str, Finished]:
    """Scores of the pool by role, one for each forward pass.

    Each holds `scores.parquet`: a row for each sample, in the order of the pool's index. What is in
    storage is not computed again; models that are shown the same and lack the same samples share
    their batches. `work` is added to. Raises UserError where too many samples are rejected.
    """
    places = find_places(config, pool, forwards, storage)
    # Two roles may be the same model and the same rendering.
    first = {place.artifact.key: role for role, place in reversed(places.items())}
    with ExitStack() as turns:
        # All runs take their turns in one order, so that no two wait for each other.
        missing = [
            role
            for _, role in sorted(first.items())
            if turns.enter_context(places[role].artifact.turn(progress.say)) is None
        ]
        if missing:
            lacking = {role: forward for role, forward in forwards.items() if role in missing}
            _compute(config, pool, lacking, places, progress, work)
    return finished_scores(config, pool, forwards, storage)


def _compute(
    config: Config,
    pool: Pool,
    forwards: Mapping[str, Forward],
    places: Mapping[str, Place],
    progress: Progress,
    work: Work,
) -> None:
    """The scores that are missing: forward passes for what no piece holds, then gathered."""
    passes = all_passes(pool, forwards, places)
    rejected: dict[Rendering, Counter[str]] = defaultdict(Counter)
    with progress.stage("score", "samples", sum(one.tokens for one in passes)) as stage:
        for one in passes:
            for receipt in score_blocks(config, pool, one.views, one.prefixes):
                _account(receipt, one.views, rejected, work, stage)
                for rendering, reasons in rejected.items():
                    if rendering.form == "whole":  # of others, the selection needs it or not
                        check_rejects(pool, config.data.max_reject_ratio, reasons)
    for role, forward in forwards.items():
        place = places[role]
        with place.artifact.attempt() as attempt:
            gather(pool, place.pieces, forward.rendering.measures, attempt.folder)
            attempt.finish(place.inputs, {"samples": len(pool)})


def _account(
    receipt: pa.Table,
    views: Sequence[View],
    rejected: dict[Rendering, Counter[str]],
    work: Work,
    stage: Stage,
) -> None:
    """Counts what was done, and the reasons of the samples that could not be scored."""
    for row in receipt.to_pylist():
        for view, samples, reasons in zip(views, row["samples"], row["rejected"], strict=True):
            rejected[view.rendering].update(reasons)
            for role in view.models:
                work.samples[role] = work.samples.get(role, 0) + samples
        usage = Usage(**row["usage"])
        work.usage.add(usage)
        speed = (stage.work + usage.tokens) / max(stage.elapsed(), 1e-9)
        stage.add(max(row["samples"]), work=usage.tokens, note=f"{speed:,.0f} tokens/s")
