"""The scores of round `rounds`, alone, from a finished pool and a finished calibrated model.

A baseline needs the pool only.
"""

from _launch import launch

from instructdiff_ray.pipeline import Run


def main(run: Run) -> None:
    pool = run.finished_pool()
    if run.strategy.calibrates:
        run.score(pool, run.finished_model(pool, run.training_ids(pool, run.config.rounds)))
    else:
        run.score(pool)
    passes = ", ".join(f"{role} {count:,}" for role, count in run.work.samples.items())
    run.progress.say(f"scores of {len(pool):,} samples; forward passes now: {passes}")


if __name__ == "__main__":
    launch(main)
