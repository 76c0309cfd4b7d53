"""The calibrated model of round `rounds`, alone, from a finished pool.

From the second round on it needs the finished scores of the rounds before.
"""

from _launch import launch

from instructdiff_ray.context import RunContext
from instructdiff_ray.models.model import models_by_domain
from instructdiff_ray.pipeline import calibrate_on, ingest_pool, training_ids


def main(context: RunContext) -> None:
    pool = ingest_pool(context, build=False)
    sample_ids = training_ids(context, pool)
    models = models_by_domain(calibrate_on(context, pool, sample_ids)).values()
    paths = ", ".join(model.trained for model in models)
    context.progress.say(f"calibrated on {len(sample_ids):,} samples: {paths}")


if __name__ == "__main__":
    launch(main)
