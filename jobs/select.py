"""The selection, alone, on a finished pool.

InstructDiff's, of round `rounds`, from finished scores: no model runs. A baseline computes what it
lacks of the scores that it needs.
"""

from _launch import launch

from instructdiff_ray.pipeline import Run


def main(run: Run) -> None:
    calibrated, ranking = run.select_finished(run.finished_pool())
    run.write(run.config.rounds, calibrated, ranking)
    run.show_result()


if __name__ == "__main__":
    launch(main)
