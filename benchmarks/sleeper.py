"""A scorer in all but its models. A module without torch: 64 of them share one machine."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
from ray.actor import ActorHandle

from instructdiff_ray.blocks import scores_table
from instructdiff_ray.models import Model
from instructdiff_ray.throughput import Usage
from instructdiff_ray.watch import Watched


class Sleeper:
    """sleep_s: for each sample; the rest as for a Scorer."""

    sleep_s = 0.0

    def __init__(
        self, models: Mapping[str, Model], measures: Sequence[str], watch: ActorHandle, **_: Any
    ) -> None:
        self.roles, self.measures = list(models), measures
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
        values = {role: self.random.normal(2, 0.5, (2, block.num_rows)) for role in self.roles}
        scores = scores_table(block, self.measures, values, {role: set() for role in self.roles})
        self.free_since = time.monotonic()
        usage.busy_s = self.free_since - began
        self.watched.end(name, scored=True)
        for column, value in asdict(usage).items():
            scores = scores.append_column(column, pa.array([value] + [0.0] * (len(scores) - 1)))
        return scores
