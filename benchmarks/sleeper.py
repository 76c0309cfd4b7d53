"""A scorer in all but its models. This module does without torch, for 64 actors share a machine."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
from ray.actor import ActorHandle

from instructdiff_ray.engine.throughput import Throughput
from instructdiff_ray.models.encoding import LIKELIHOOD
from instructdiff_ray.scoring.blocks import score_columns
from instructdiff_ray.scoring.crash_guard import CrashGuardClient
from instructdiff_ray.scoring.plan import ScoreTarget, Targets, by_encoding


class Sleeper:
    """Takes and gives what a Scorer does. sleep_s: the seconds that it sleeps for each sample."""

    sleep_s = 0.0

    def __init__(self, targets: Targets, guard: ActorHandle, **_: Any) -> None:
        (self.targets,) = by_encoding(targets).values()
        self.guard = CrashGuardClient(guard)
        self.free_since: float | None = None
        self.random = np.random.default_rng()

    def scores(self, block: pa.Table, target: ScoreTarget) -> dict[str, np.ndarray]:
        """Any numbers, by measure."""
        return {measure: self.random.normal(2, 0.5, block.num_rows) for measure in LIKELIHOOD}

    def __call__(self, block: pa.Table) -> pa.Table:
        name = f"block {block['sample_id'][0]}"
        self.guard.begin(name)
        began = time.monotonic()
        # Waiting for the first block does not count.
        throughput = Throughput(waited_s=began - (self.free_since or began))
        time.sleep(self.sleep_s * block.num_rows)
        columns = {"sample_id": block["sample_id"]}
        for target in self.targets:
            values = self.scores(block, target)
            columns.update(score_columns(block, 0, target.name, values, {}))
            columns[f"{target.name}_forward_pass"] = pa.array(["simulated"] * block.num_rows)
        scores = pa.table(columns)
        self.free_since = time.monotonic()
        throughput.busy_s = self.free_since - began
        self.guard.end(name, scored=True)
        for column, value in asdict(throughput).items():
            scores = scores.append_column(column, pa.array([value] + [0.0] * (len(scores) - 1)))
        return scores
