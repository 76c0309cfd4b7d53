"""The whole method: from source files or a dataset of the Hub to a selection and a report.

What is in `storage` already is taken from there. Without settings it runs the demo, offline.

Examples:
  instructdiff run
  instructdiff run data.path=openai/gsm8k data.subset=main domain=math model=qwen2.5-0.5b
  instructdiff run data.path=pool.jsonl model.base=/models/base domain=code cluster=one_gpu
  instructdiff run -m select.ratio=0.05,0.1,0.2 data.path=pool.jsonl domain=math model=qwen2.5-0.5b
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from instructdiff_ray.commands.launch import launch
from instructdiff_ray.context import RunContext
from instructdiff_ray.pipeline import ingest_pool, run_rounds
from instructdiff_ray.results.console import show_result
from instructdiff_ray.results.outputs import write_round


def stage(context: RunContext) -> dict[str, Any]:
    pool = ingest_pool(context)
    for result in run_rounds(context, pool):  # pipeline.algorithm_1, or a baseline
        summary = write_round(context, result)
    show_result(context, summary)
    return summary


def main(arguments: Sequence[str]) -> None:
    launch("run", stage, arguments)
