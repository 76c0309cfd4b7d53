"""The calibrated model of round `rounds`, or those of all repeats, alone, from a finished pool.

From the second round on it needs the finished scores of the rounds before.
"""

from _launch import launch

from instructdiff_ray.context import RunContext
from instructdiff_ray.models.model import models_by_domain
from instructdiff_ray.pipeline import calibrate_repeats, ingest_pool, training_ids


def main(context: RunContext) -> None:
    pool = ingest_pool(context, build=False)
    samples = training_ids(context, pool)
    repeats = calibrate_repeats(context, pool, samples)
    models = (model for repeat in repeats for model in models_by_domain(repeat).values())
    paths = ", ".join(model.trained for model in models)
    context.progress.say(f"calibrated on {len(samples[0]):,} samples: {paths}")


if __name__ == "__main__":
    launch(main)
