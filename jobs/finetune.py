"""Train a model on a selection: `finetune.model`, or model.base, with the settings of `calibrate`.

The selection is that of a finished run (`finetune.selection=RUN`), or else what the configuration
selects from finished scores. The same command line as jobs/run.py finds its pool.
"""

from _launch import launch

from instructdiff_ray.pipeline import Run
from instructdiff_ray.results.compare import selection_of
from instructdiff_ray.selection.ranking import selected_ids


def main(run: Run) -> None:
    pool = run.finished_pool()
    if folder := run.config.finetune.selection:
        chosen = selection_of(folder, pool)
    else:
        _, ranking = run.select_finished(pool)
        chosen = selected_ids(ranking)
    model = run.finetune(pool, chosen)
    run.progress.say(f"{run.target.path} trained on {len(chosen):,} samples: {model.trained}")


if __name__ == "__main__":
    launch(main)
