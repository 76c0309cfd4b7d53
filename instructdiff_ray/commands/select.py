"""The selection, alone, on a finished pool.

InstructDiff's, of round `rounds`, from finished scores: no model runs. A baseline computes what it
lacks of the scores that it needs.

Example, behind `instructdiff score` with the same settings:
  instructdiff select data.path=pool.jsonl model.base=/models/base domain=math select.ratio=0.05
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from instructdiff_ray.commands.launch import launch
from instructdiff_ray.context import RunContext
from instructdiff_ray.pipeline import ingest_pool, last_round
from instructdiff_ray.results.console import show_result
from instructdiff_ray.results.outputs import write_round


def stage(context: RunContext) -> dict[str, Any]:
    pool = ingest_pool(context, build=False)
    summary = write_round(context, last_round(context, pool, build=False), build=False)
    show_result(context, summary)
    return summary


def main(arguments: Sequence[str]) -> None:
    launch("select", stage, arguments)
