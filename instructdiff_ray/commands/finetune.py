"""Train a model on a selection.

Trains `finetune.model`, or else model.base, with the settings of `calibrate`. The selection is that
of a finished run (`finetune.selection=RUN`), or else what the configuration selects from finished
scores. The settings of the run find its pool.

Example:
  instructdiff finetune finetune.selection=outputs/runs/math data.path=pool.jsonl domain=math \\
      model=qwen2.5-0.5b finetune.model=Qwen/Qwen2.5-7B
"""

from __future__ import annotations

from collections.abc import Sequence

from instructdiff_ray.commands.launch import launch
from instructdiff_ray.context import RunContext
from instructdiff_ray.pipeline import finetune_on, ingest_pool, last_round
from instructdiff_ray.results.compare import selection_of
from instructdiff_ray.selection.ranking import selected_ids


def stage(context: RunContext) -> None:
    pool = ingest_pool(context, build=False)
    if folder := context.config.finetune.selection:
        sample_ids = selection_of(folder, pool)
    else:
        sample_ids = selected_ids(last_round(context, pool, build=False).ranking)
    model = finetune_on(context, pool, sample_ids)
    context.progress.say(
        f"{context.target.path} trained on {len(sample_ids):,} samples: {model.trained}"
    )


def main(arguments: Sequence[str]) -> None:
    launch("finetune", stage, arguments)
