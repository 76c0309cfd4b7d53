"""The scores of round `rounds`, alone, from a finished pool and a finished calibrated model."""

from _launch import launch

from instructdiff_ray.pipeline import Run


def main(run: Run) -> None:
    pool = run.finished_pool()
    calibrated = run.finished_model(pool, run.training_ids(pool, run.config.rounds))
    run.score(pool, calibrated)
    passes = ", ".join(f"{role} {count:,}" for role, count in run.work.samples.items())
    run.progress.say(f"scores of {len(pool):,} samples; forward passes now: {passes}")


if __name__ == "__main__":
    launch(main)
