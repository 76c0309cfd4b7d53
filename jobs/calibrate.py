"""The calibrated model of round `rounds`, alone, from a finished pool.

From the second round on it needs the finished scores of the rounds before.
"""

from _launch import launch

from instructdiff_ray.pipeline import Run, model_paths


def main(run: Run) -> None:
    pool = run.finished_pool()
    chosen = run.training_ids(pool, run.config.rounds)
    paths = model_paths(run.calibrate(pool, chosen))
    run.progress.say(f"calibrated on {len(chosen):,} samples: {', '.join(paths.values())}")


if __name__ == "__main__":
    launch(main)
