"""The calibrated model of a round, alone, from a finished pool.

Of round `rounds`, or those of all its repeats. From the second round on it needs the finished
scores of the rounds before.

Example, behind `instructdiff ingest` with the same settings:
  instructdiff calibrate data.path=pool.jsonl model.base=/models/base domain=math
"""

from __future__ import annotations

from collections.abc import Sequence

from instructdiff_ray.commands.launch import launch
from instructdiff_ray.context import RunContext
from instructdiff_ray.models.model import models_by_domain
from instructdiff_ray.pipeline import calibrate_repeats, ingest_pool, training_ids


def stage(context: RunContext) -> None:
    pool = ingest_pool(context, build=False)
    samples = training_ids(context, pool)
    repeats = calibrate_repeats(context, pool, samples)
    models = (model for repeat in repeats for model in models_by_domain(repeat).values())
    paths = ", ".join(model.trained for model in models)
    context.progress.say(f"calibrated on {len(samples[0]):,} samples: {paths}")


def main(arguments: Sequence[str]) -> None:
    launch("calibrate", stage, arguments)
