"""The scores of round `rounds`, alone, from a finished pool and a finished calibrated model.

A baseline needs the pool only.
"""

from _launch import launch

from instructdiff_ray.context import RunContext
from instructdiff_ray.models.model import ModelByDomain
from instructdiff_ray.pipeline import calibrate_repeats, ingest_pool, score_pool, training_ids


def main(context: RunContext) -> None:
    pool = ingest_pool(context, build=False)
    calibrated: list[ModelByDomain] = []
    if context.strategy.calibrates:
        calibrated = calibrate_repeats(context, pool, training_ids(context, pool), build=False)
    score_pool(context, pool, calibrated)
    passes = ", ".join(f"{name} {count:,}" for name, count in context.stats.samples.items())
    context.progress.say(f"scores of {len(pool):,} samples; forward passes now: {passes}")


if __name__ == "__main__":
    launch(main)
