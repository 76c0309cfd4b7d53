"""Runs a job whose scorers have GPUs in name alone: the models run on processors.

    python -m tests.processors jobs/score.py …

So Ray, its autoscaler and its schedulers have real work with what a machine without GPUs can do.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

from instructdiff_ray.scoring import dataflow
from instructdiff_ray.scoring.actor import Scorer

ROWS_PER_BATCH = 16  # several blocks of a small pool


class ScorerOnProcessors(Scorer):
    def __init__(self, gpus: float, **settings: Any) -> None:
        super().__init__(gpus=0, **settings)


if __name__ == "__main__":
    dataflow.Scorer = ScorerOnProcessors  # type: ignore[misc]
    dataflow.ROWS_PER_BATCH = ROWS_PER_BATCH
    job = Path(sys.argv[1])
    del sys.argv[0]
    sys.path.insert(0, str(job.parent))  # as `python job` does
    runpy.run_path(str(job), run_name="__main__")
