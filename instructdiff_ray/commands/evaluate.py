"""Does a selection teach more than others, than random samples, or than all of them?

Holds out a share of the pool, and for each of `evaluate.seeds` trains the model on what each of
`evaluate.arms` selects of the rest, at as many samples and at as many response tokens; prints the
NLL of the held-out responses, the differences with their intervals, and what benchmark tasks
(`evaluate.tasks`) say of each model.

Example:
  instructdiff evaluate data.path=pool.jsonl domain=math model=qwen2.5-0.5b \\
      evaluate.arms=[instructdiff,random,full]
"""

from __future__ import annotations

from collections.abc import Sequence

from instructdiff_ray.commands.launch import launch
from instructdiff_ray.context import RunContext
from instructdiff_ray.evaluation.evaluate import evaluate
from instructdiff_ray.evaluation.outputs import tables, write
from instructdiff_ray.storage.filesystem import join


def stage(context: RunContext) -> None:
    evaluation, config = evaluate(context), context.config
    about = {
        "domain": config.domain,
        "model": context.target.path,
        "seconds": dict(context.progress.seconds),
    }
    write(context.folder, evaluation, about)
    plot = join(context.folder.path, "evaluation.png")
    context.progress.say(f"\n{tables(evaluation)}\n\n{plot}")


def main(arguments: Sequence[str]) -> None:
    launch("evaluate", stage, arguments)
