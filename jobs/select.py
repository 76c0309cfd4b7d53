"""The selection, alone, on a finished pool.

InstructDiff's, of round `rounds`, from finished scores: no model runs. A baseline computes what it
lacks of the scores that it needs.
"""

from _launch import launch

from instructdiff_ray.pipeline import Run


def main(run: Run) -> None:
    pool = run.finished_pool()
    if run.strategy.calibrates:
        calibrated = run.finished_model(pool, run.training_ids(pool, run.config.rounds))
        scores = run.finished_scores(pool, calibrated)
    else:
        calibrated, scores = None, run.score(pool)
    run.write(run.config.rounds, calibrated, run.select(pool, scores))
    run.show_result()


if __name__ == "__main__":
    launch(main)
