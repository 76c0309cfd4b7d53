"""The selection of round `rounds`, alone, from finished scores: no model runs."""

from _launch import launch

from instructdiff_ray.pipeline import Run


def main(run: Run) -> None:
    pool = run.finished_pool()
    calibrated = run.finished_model(pool, run.training_ids(pool, run.config.rounds))
    ranking = run.select(pool, run.finished_scores(pool, calibrated))
    run.write(run.config.rounds, calibrated, ranking)
    run.show_result()


if __name__ == "__main__":
    launch(main)
