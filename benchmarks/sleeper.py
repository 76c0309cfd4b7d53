"""A scorer in all but its models. A module without torch: 64 of them share one machine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
from ray.actor import ActorHandle

from instructdiff_ray.engine.throughput import Usage
from instructdiff_ray.models.encoding import LIKELIHOOD
from instructdiff_ray.scoring.blocks import score_columns
from instructdiff_ray.scoring.crash_guard import Watched
from instructdiff_ray.scoring.plan import View


class Sleeper:
    """sleep_s: for each sample; the rest as for a Scorer."""

    sleep_s = 0.0

    def __init__(self, views: Sequence[View], watch: ActorHandle, **_: Any) -> None:
        (self.view,) = views
        self.watched = Watched(watch)
        self.free_since: float | None = None
        self.random = np.random.default_rng()

    def __call__(self, block: pa.Table) -> pa.Table:
        name = f"block {block['sample_id'][0]}"
        self.watched.begin(name)
        began = time.monotonic()
        # From its first block on.
        usage = Usage(waited_s=began - (self.free_since or began))
        time.sleep(self.sleep_s * block.num_rows)
        columns = {"sample_id": block["sample_id"]}
        for role in self.view.models:
            values = {name: self.random.normal(2, 0.5, block.num_rows) for name in LIKELIHOOD}
            columns.update(score_columns(block, 0, role, values, {}))
        scores = pa.table(columns)
        self.free_since = time.monotonic()
        usage.busy_s = self.free_since - began
        self.watched.end(name, scored=True)
        for column, value in asdict(usage).items():
            scores = scores.append_column(column, pa.array([value] + [0.0] * (len(scores) - 1)))
        return scores
