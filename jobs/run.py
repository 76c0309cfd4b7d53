"""The whole method: `python jobs/run.py data.path=… model.base=… domain=…`."""

from typing import Any

from _launch import launch

from instructdiff_ray.context import RunContext
from instructdiff_ray.pipeline import ingest_pool, run_rounds
from instructdiff_ray.results.console import show_result
from instructdiff_ray.results.outputs import write_round


def main(context: RunContext) -> dict[str, Any]:
    pool = ingest_pool(context)
    for result in run_rounds(context, pool):  # pipeline.algorithm_1, or a baseline
        summary = write_round(context, result)
    show_result(context, summary)
    return summary


if __name__ == "__main__":
    launch(main)
