"""Train a model on a selection: `finetune.model`, or model.base, with the settings of `calibrate`.

The selection is that of a finished run (`finetune.selection=RUN`), or else what the configuration
selects from finished scores. The same command line as jobs/run.py finds its pool.
"""

from _launch import launch

from instructdiff_ray.context import RunContext
from instructdiff_ray.pipeline import finetune_on, ingest_pool, last_round
from instructdiff_ray.results.compare import selection_of
from instructdiff_ray.selection.ranking import selected_ids


def main(context: RunContext) -> None:
    pool = ingest_pool(context, build=False)
    if folder := context.config.finetune.selection:
        sample_ids = selection_of(folder, pool)
    else:
        sample_ids = selected_ids(last_round(context, pool, build=False).ranking)
    model = finetune_on(context, pool, sample_ids)
    context.progress.say(
        f"{context.target.path} trained on {len(sample_ids):,} samples: {model.trained}"
    )


if __name__ == "__main__":
    launch(main)
