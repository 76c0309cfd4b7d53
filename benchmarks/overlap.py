"""How alike are two selections? `python -m benchmarks.overlap MODEL POOL …`

From some samples of each pool: after training all parameters in fp32, and after the same in bf16,
after training an adapter, and after training with another seed. That seed draws another warm-up
subset, so the last shows how much two runs of the paper's method differ by themselves.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.common import save
from benchmarks.corrupted import (
    CALIBRATE,
    FOLDER,
    draw_samples,
    select_last,
    settings,
    start_ray,
    write,
)
from instructdiff_ray.config.cluster import ClusterConfig
from instructdiff_ray.config.data import DataConfig
from instructdiff_ray.config.run import Config
from instructdiff_ray.results.compare import spearman
from instructdiff_ray.selection.ranking import Ranking, selected_ids

RANK, ROWS = 16, 800
# An adapter wants larger steps than all parameters do, about ten times as large.
ADAPTER = replace(CALIBRATE, lora_rank=RANK, learning_rate=10 * CALIBRATE.learning_rate)


def overlap(config: Config) -> dict[str, dict[str, float]]:
    """How alike each selection and the one after training all parameters in fp32 are."""
    plain = select_last(config)
    others = {
        "bf16": select_last(replace(config, cluster=ClusterConfig(precision="bf16"))),
        "adapter": select_last(replace(config, calibrate=ADAPTER)),
        "another seed": select_last(replace(config, seed=1)),
    }
    return {name: _compare(plain, other) for name, other in others.items()}


def _compare(plain: Ranking, other: Ranking) -> dict[str, float]:
    assert not plain.rejected.num_rows + other.rejected.num_rows, "rows would not be aligned"
    first, second = set(selected_ids(plain)), set(selected_ids(other))
    return {
        "samples": plain.table.num_rows,
        "selected": len(first),
        "overlap": len(first & second) / len(first),
        "jaccard": len(first & second) / len(first | second),
        "rank_correlation": spearman(_column(plain, "entropy"), _column(other, "entropy")),
        "mean_delta_nll": float(_column(plain, "nll").mean()),
        "mean_delta_nll_of_other": float(_column(other, "nll").mean()),
    }


def _column(ranking: Ranking, measure: str) -> np.ndarray:
    return np.asarray(ranking.table[f"delta_{measure}"].to_numpy(), dtype=float)


def main() -> None:
    """Measure every pool that the command line names; what `benchmarks.corrupted` has scored is not
    scored again."""
    model, *pools = sys.argv[1:]
    start_ray()
    results = {}
    for path in map(Path, pools):
        folder = FOLDER / path.stem
        config = settings(model, path, folder)
        write(folder / "drawn.jsonl", draw_samples(config, ROWS, seed=0))
        data = DataConfig(path=str(folder / "drawn.jsonl"))
        results[path.stem] = overlap(replace(config, data=data))
        print(path.stem, results[path.stem], flush=True)
    save("overlap", {"rank": RANK, "results": results})


if __name__ == "__main__":
    main()
