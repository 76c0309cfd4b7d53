"""The warm-up subset of a pool: each partition has a Ray task that draws, for each id is hashed.

A plan, for which no Ray is started, draws in its own process.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from instructdiff_ray.pool.pool import Pool
from instructdiff_ray.pool.sampling import Draws, draws_below, sample_warmup
from instructdiff_ray.pool.tasks import run_tasks


def draw_subset(pool: Pool, domains: Collection[str], ratio: float, seed: int) -> list[str]:
    """The α share of all samples of these domains, sorted ids. UserError where α leaves none."""
    sizes, wanted = pool.domains(), pa.array(sorted(domains))

    def below(limit: int) -> Draws:
        of_index = replace(pool, parts=[])  # the names of its parts are many
        parts = [(of_index, n, wanted, seed, limit) for n in range(pool.partitions)]
        drawn = run_tasks(_draw_in_partition, parts)
        ids, draws = zip(*drawn, strict=True)
        return np.concatenate(ids), np.concatenate(draws)

    return sample_warmup(sum(sizes[name] for name in domains), below, ratio)


def _draw_in_partition(pool: Pool, number: int, domains: pa.Array, seed: int, limit: int) -> Draws:
    index = pool.read_partition(number, ["sample_id", "domain"])
    of_domains = index.filter(pc.is_in(index["domain"].cast(pa.string()), domains))
    return draws_below(of_domains["sample_id"].to_pylist(), seed, limit)
