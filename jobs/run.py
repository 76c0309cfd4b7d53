"""The whole method: `python jobs/run.py data.path=… model.base=… domain=…`."""

from _launch import launch

from instructdiff_ray.pipeline import Run
from instructdiff_ray.pool.pool import Pool
from instructdiff_ray.selection.ranking import selected_ids


def main(run: Run) -> None:
    pool = run.ingest()  # D
    if run.strategy.calibrates:
        algorithm_1(run, pool)
    else:  # a baseline
        run.write(1, None, run.select(pool, run.score(pool)))
    run.show_result()


def algorithm_1(run: Run, pool: Pool) -> None:
    """InstructDiff, as Algorithm 1 of the paper has it."""
    chosen = run.sample_warmup(pool)  # W ← random α·N of D
    for k in range(1, run.config.rounds + 1):
        calibrated = run.calibrate(pool, chosen)  # π_cal, from the base model in every round
        scores = run.score(pool, calibrated)  # ΔNLL, ΔH; the base model's once
        ranking = run.select(pool, scores)  # B, D′
        run.write(k, calibrated, ranking)
        chosen = selected_ids(ranking)


if __name__ == "__main__":
    launch(main)
