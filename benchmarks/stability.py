"""Do the estimates from a few calibrations hold for others?

`python -m benchmarks.stability MODEL POOL … [--repeats 12] [--known 4]`

Every block of some repeats is known to the estimates (`selection/stability.py`), and all others are
the truth: how often they select a sample, and what they share, alone and in means of several.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import save
from benchmarks.corrupted import settings, start_ray
from instructdiff_ray.context import prepare
from instructdiff_ray.pipeline import ingest_pool, last_round
from instructdiff_ray.progress import Progress
from instructdiff_ray.results.console import aligned_table
from instructdiff_ray.selection.certificate import rank_by_mean, single_runs
from instructdiff_ray.selection.ranking import PROBABILITY, Ranking, rank
from instructdiff_ray.selection.select import SELECTED
from instructdiff_ray.selection.stability import DomainModel, shared_pairs

FOLDER = Path("outputs/stability")
EDGES = (0.02, 0.1, 0.3, 0.5, 0.7, 0.9)


def selections(ranking: Ranking, groups: Sequence[Sequence[int]]) -> np.ndarray:
    """[groups, samples]: what is selected by the mean of each group of repeats."""
    rankings = [
        rank(ranking.pool, ranking.scores, replace(ranking.inputs, repeats=tuple(group)))
        for group in groups
    ]
    return np.stack([each.has_fate(SELECTED) for each in rankings])


def overlap(ranking: Ranking, groups: Sequence[Sequence[int]]) -> float:
    """Of the selections by these groups of repeats, which share none, over all pairs."""
    shared, size = shared_pairs(selections(ranking, groups))
    return shared / size


def disjoint(repeats: Sequence[int], size: int) -> list[Sequence[int]]:
    """As many groups of so many as there are."""
    return [repeats[n : n + size] for n in range(0, len(repeats) - size + 1, size)]


def measure(ranking: Ranking, known: int) -> dict[str, Any]:
    """The estimates from each block of repeats, and the truth in the others.

    The overlap of means is that of disjoint groups, over all repeats.
    """
    repeats = ranking.inputs.repeats
    blocks = disjoint(repeats, known)
    sizes = [size for size in (1, 2, known, len(repeats) // 2) if size <= len(repeats) // 2]
    estimated: list[dict[int, float]] = []
    said: list[np.ndarray] = []
    happened: list[np.ndarray] = []
    counted: list[np.ndarray] = []
    for block in blocks:
        inputs = replace(ranking.inputs, repeats=tuple(block))
        of_block = rank_by_mean(ranking.pool, ranking.scores, inputs)
        ((_, _, runs),) = single_runs(of_block)  # the pools have one domain
        model = DomainModel.fit(runs)
        estimated.append({size: model.overlap(size) for size in sizes})
        said.append(of_block.table[PROBABILITY.name].to_numpy())
        happened.append(selections(ranking, [[r] for r in repeats if r not in block]).mean(axis=0))
        counted.append(selections(ranking, [[r] for r in block]).mean(axis=0))
    probability, truth, frequency = (np.concatenate(x) for x in (said, happened, counted))
    place = np.digitize(probability, EDGES)
    singles = selections(ranking, [[r] for r in repeats])
    means = selections(ranking, blocks)
    others = selections(ranking, [[r for r in repeats if r not in block] for block in blocks])
    agreement = {
        "one": [
            shared_share(singles[repeats.index(r)], other)
            for block, other in zip(blocks, others, strict=True)
            for r in block
        ],
        "mean": [shared_share(mean, other) for mean, other in zip(means, others, strict=True)],
    }
    return {
        "overlap": {
            size: {
                "true": overlap(ranking, disjoint(repeats, size)),
                "estimated": [each[size] for each in estimated],
            }
            for size in dict.fromkeys(sizes)
        },
        "calibration": [
            {
                "said": float(probability[place == n].mean()),
                "true": float(truth[place == n].mean()),
                "samples": int((place == n).sum()),
            }
            for n in np.unique(place)
        ],
        # Squared error against what the other repeats did, their own noise included.
        "squared_error": float(np.mean((probability - truth) ** 2)),
        "squared_error_of_counting": float(np.mean((frequency - truth) ** 2)),
        # With the selection by the mean of all others.
        "agreement": {name: float(np.mean(shares)) for name, shares in agreement.items()},
        "single_pairs": [
            shared_share(singles[a], singles[b]) for a, b in combinations(range(len(repeats)), 2)
        ],
    }


def shared_share(first: np.ndarray, second: np.ndarray) -> float:
    """|A ∩ B| / |A|."""
    return float((first & second).sum() / first.sum())


def table(figures: dict[str, Any]) -> str:
    """The overlaps, and the calibration of the probabilities."""
    rows = [["mean of", "true overlap", "estimated (lowest to highest)"]]
    for size, of_size in figures["overlap"].items():
        low, high = min(of_size["estimated"]), max(of_size["estimated"])
        mean = np.mean(of_size["estimated"])
        rows.append([str(size), f"{of_size['true']:.2f}", f"{mean:.2f} ({low:.2f}–{high:.2f})"])
    curve = [["said", "true", "samples"]]
    curve += [
        [f"{bin['said']:.2f}", f"{bin['true']:.2f}", str(bin["samples"])]
        for bin in figures["calibration"]
    ]
    agreement = "with the mean of all others: one {one:.2f}, mean {mean:.2f}"
    errors = "squared error {squared_error:.4f}, of counting {squared_error_of_counting:.4f}"
    return "\n\n".join(
        [
            aligned_table(rows, 1),
            aligned_table(curve, 0),
            agreement.format(**figures["agreement"]),
            errors.format(**figures),
        ]
    )


def main() -> None:
    """Measure every pool that the command line names."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("pools", nargs="+", type=Path)
    parser.add_argument("--repeats", type=int, default=12)
    parser.add_argument("--known", type=int, default=4)
    parser.add_argument("--rows", type=int, default=1000)
    arguments = parser.parse_args()
    start_ray()
    for path in arguments.pools:
        config = settings(arguments.model, path, FOLDER / path.stem)
        calibrate = replace(config.calibrate, repeats=arguments.repeats)
        data = replace(config.data, limit=arguments.rows)
        context = prepare(replace(config, calibrate=calibrate, data=data), Progress(sys.stderr))
        ranking = last_round(context, ingest_pool(context)).ranking
        figures = measure(ranking, arguments.known)
        print(path.stem, table(figures), sep="\n", flush=True)
        settled = {"rows": arguments.rows, "known": arguments.known, **figures}
        save(f"stability-{path.stem}", settled)


if __name__ == "__main__":
    main()
