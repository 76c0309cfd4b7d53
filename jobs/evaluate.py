"""Does the selection teach more than random samples, or than all? `python jobs/evaluate.py …`.

Holds out a share of the pool, and for each of `evaluate.seeds` fine-tunes the model on the
selection, on as many random samples and on all the rest; prints the NLL of the held-out responses,
and what benchmark tasks (`evaluate.tasks`) say of each model.
"""

from _launch import launch

from instructdiff_ray.context import RunContext
from instructdiff_ray.evaluation.evaluate import as_rows, evaluate, write
from instructdiff_ray.results.console import aligned_table
from instructdiff_ray.storage.filesystem import join


def main(context: RunContext) -> None:
    results, config = evaluate(context), context.config
    about = {"strategy": config.strategy, "domain": config.domain, "model": context.target.path}
    write(context.folder, results, about)
    table = aligned_table(as_rows(results), text_columns=1)
    context.progress.say(f"\n{table}\n\n{join(context.folder.path, 'evaluation.png')}")


if __name__ == "__main__":
    launch(main)
