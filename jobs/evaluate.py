"""Does the selection teach more than random samples, or than all? `python jobs/evaluate.py …`.

Holds out a share of the pool, and for each of `evaluate.seeds` fine-tunes the model on the
selection, on as many random samples and on all the rest; prints the NLL of the held-out responses,
and what benchmark tasks (`evaluate.tasks`) say of each model.
"""

from _launch import launch

from instructdiff_ray.config.run import Config
from instructdiff_ray.evaluation.evaluate import as_rows, evaluate, write
from instructdiff_ray.pipeline import Run
from instructdiff_ray.pool.pool import Pool
from instructdiff_ray.results.console import aligned_table
from instructdiff_ray.selection.ranking import selected_ids
from instructdiff_ray.storage.filesystem import join


def main(run: Run) -> None:
    found = evaluate(run, select)
    config: Config = run.config
    about = {"strategy": config.strategy, "domain": config.domain, "model": run.target.path}
    write(run.folder, found, about)
    table = aligned_table(as_rows(found), text_columns=1)
    run.progress.say(f"\n{table}\n\n{join(run.folder.path, 'evaluation.png')}")


def select(run: Run, pool: Pool) -> list[str]:
    """What the configured strategy selects; InstructDiff in all its rounds."""
    if not run.strategy.calibrates:
        return selected_ids(run.select(pool, run.score(pool)))
    chosen = run.sample_warmup(pool)
    for _ in range(run.config.rounds):
        chosen = selected_ids(run.select(pool, run.score(pool, run.calibrate(pool, chosen))))
    return chosen


if __name__ == "__main__":
    launch(main)
