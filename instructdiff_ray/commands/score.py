"""The scores of a round, alone, from a finished pool and a finished calibrated model.

Of round `rounds`. A baseline needs the pool only.

Example, behind `instructdiff calibrate` with the same settings:
  instructdiff score data.path=pool.jsonl model.base=/models/base domain=math
"""

from __future__ import annotations

from collections.abc import Sequence

from instructdiff_ray.commands.launch import launch
from instructdiff_ray.context import RunContext
from instructdiff_ray.models.model import ModelByDomain
from instructdiff_ray.pipeline import calibrate_repeats, ingest_pool, score_pool, training_ids


def stage(context: RunContext) -> None:
    pool = ingest_pool(context, build=False)
    calibrated: list[ModelByDomain] = []
    if context.strategy.calibrates:
        calibrated = calibrate_repeats(context, pool, training_ids(context, pool), build=False)
    score_pool(context, pool, calibrated)
    passes = ", ".join(f"{name} {count:,}" for name, count in context.stats.samples.items())
    context.progress.say(f"scores of {len(pool):,} samples; forward passes now: {passes}")


def main(arguments: Sequence[str]) -> None:
    launch("score", stage, arguments)
