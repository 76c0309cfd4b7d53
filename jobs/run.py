"""The whole method: `python jobs/run.py data.path=… model.base=… domain=…`."""

from _launch import launch

from instructdiff_ray.pipeline import Run
from instructdiff_ray.ranking import selected_ids


def main(run: Run) -> None:
    """Algorithm 1 of the paper."""
    pool = run.ingest()  # D
    chosen = run.sample_warmup(pool)  # W ← random α·N of D
    for k in range(1, run.config.rounds + 1):
        calibrated = run.calibrate(pool, chosen)  # π_cal, from the base model in every round
        scores = run.score(pool, calibrated)  # ΔNLL, ΔH; the base model's once
        ranking = run.select(pool, scores)  # B, D′
        run.write(k, calibrated, ranking)
        chosen = selected_ids(ranking)
    run.show_result()


if __name__ == "__main__":
    launch(main)
