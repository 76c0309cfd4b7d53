"""Plans against what then came: `python -m benchmarks.plan MODEL POOL … [--rows 1000]`.

For each pool: what a sample of its rows says of all of it, against the ingest's own counts; and for
its first rows, the plan of a run against the run. A run over the first pool comes before all,
so that speeds were measured once, as where the same model was run before.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.common import save
from benchmarks.corrupted import start_ray
from instructdiff_ray.config.data import DataConfig, ModelConfig
from instructdiff_ray.config.run import Config
from instructdiff_ray.config.training import CalibrateConfig
from instructdiff_ray.context import RunContext, prepare
from instructdiff_ray.forecast.cost import known_rates
from instructdiff_ray.forecast.work import domain_sizes, plan_run
from instructdiff_ray.pipeline import ingest_pool, run_rounds
from instructdiff_ray.pool.pool import Pool
from instructdiff_ray.progress import Progress
from instructdiff_ray.results.console import aligned_table
from instructdiff_ray.results.costs import plan_cost
from instructdiff_ray.results.outputs import write_round

STAGES = ("calibrate", "score")


def settings(model: str, pool: str, rows: int | None, storage: str) -> Config:
    """A run over the first rows of a pool (None: all), trained so that a small model learns."""
    return Config(
        data=DataConfig(path=pool, limit=rows),
        model=ModelConfig(base=model),
        calibrate=CalibrateConfig(learning_rate=5e-4, global_batch_size=16),
        storage=storage,
    )


def sizes(pool: Pool) -> dict[str, float]:
    """Samples and tokens of a pool, or of what is known of it by a sample."""
    by_domain = domain_sizes(pool).values()
    names = ("samples", "tokens", "response_tokens")
    return {name: sum(getattr(size, name) for size in by_domain) for name in names}


def planned(context: RunContext) -> dict[str, Any]:
    """What a run is foretold to cost."""
    plan = plan_run(context)
    return plan_cost(context, plan, known_rates(context, plan))


def measured(context: RunContext) -> dict[str, Any]:
    """What it has cost."""
    pool = ingest_pool(context)
    for result in run_rounds(context, pool):
        summary = write_round(context, result)
    cost: dict[str, Any] = summary["cost"]
    return cost


def compare_run(context: RunContext) -> dict[str, dict[str, float]]:
    """Of tokens and seconds of both stages what was foretold, and what came."""
    before = planned(context)
    after = measured(context)
    pairs = {
        f"{stage} {what}": (before[stage][what], after[stage][what])
        for stage in STAGES
        for what in ("tokens", "seconds")
    }
    pairs["machine hours"] = (before["machine_hours"], after["machine_hours"])
    return {name: {"foretold": a, "came": b, "ratio": a / b} for name, (a, b) in pairs.items()}


def compare_pool(context: RunContext) -> dict[str, dict[str, float]]:
    """The same of the pool's size, which a sample of its rows foretells."""
    before = sizes(plan_run(context).pool)
    after = sizes(ingest_pool(context))
    return {
        name: {"foretold": before[name], "came": came, "ratio": before[name] / came}
        for name, came in after.items()
    }


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("model")
    parser.add_argument("pools", nargs="+")
    parser.add_argument("--rows", type=int, default=1000)
    arguments = parser.parse_args()
    progress = Progress(sys.stderr)
    start_ray()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir="/var/tmp") as storage:

        def context(pool: str, rows: int | None) -> RunContext:
            return prepare(settings(arguments.model, pool, rows, storage), Progress(sys.stderr))

        measured(context(arguments.pools[0], arguments.rows // 2))
        for pool in arguments.pools:
            ratios = compare_pool(context(pool, None)) | compare_run(context(pool, arguments.rows))
            results[Path(pool).stem] = ratios
            progress.say(f"{pool}: {ratios}")
    table = [["forecast / measured", *results]]
    for name in next(iter(results.values())):
        table.append([name, *(f"{ratios[name]['ratio']:.2f}" for ratios in results.values())])
    print(aligned_table(table, text_columns=1))
    save("plan", {"rows": arguments.rows, "pools": results})


if __name__ == "__main__":
    main()
