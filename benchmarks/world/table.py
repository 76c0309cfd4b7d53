"""What the results of the world come to: a table for each share of noise and each ratio."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.world.arms import ARMS, FULL, ORACLE
from benchmarks.world.population import KINDS, SPOILT
from benchmarks.world.tasks import BEYOND, LEARNABLE, MASTERED
from instructdiff_ray.evaluation.intervals import seed_difference
from instructdiff_ray.results.console import aligned_table

Result = dict[str, Any]
TRAINED = [FULL, ORACLE, *ARMS]
# What a skill must show to be of its kind: accuracy of the base model, and of the oracle's.
MASTERED_FROM, LEARNED_MORE, BEYOND_UP_TO = 0.9, 0.2, 0.2


def check_kinds(results: Sequence[Result]) -> list[str]:
    """A line for each size: how often the base model and one that learned only learnable samples
    are right, and which skills are not what they were meant to be."""
    lines = []
    for size in dict.fromkeys(result["size"] for result in results):
        rows = [result for result in results if result["size"] == size]
        base = _mean_accuracy([r for r in rows if r["arm"] == "untrained"])
        taught = _mean_accuracy([r for r in rows if r["arm"] == ORACLE])
        wrong = [
            *(s for s in MASTERED if base[s] < MASTERED_FROM),
            *(s for s in LEARNABLE if taught[s] < base[s] + LEARNED_MORE),
            *(s for s in BEYOND if max(base[s], taught[s]) > BEYOND_UP_TO),
        ]
        cells = "  ".join(f"{s} {100 * base[s]:.0f}→{100 * taught[s]:.0f}" for s in base)
        note = f"; not as meant: {', '.join(wrong)}" if wrong else ""
        lines.append(f"{size}: per cent right, base model → oracle: {cells}{note}")
    return lines


def report(results: Sequence[Result]) -> list[str]:
    """The tables, each under a line that says of what."""
    trained = [result for result in results if "noise" in result]
    lines = []
    for noise in sorted({r["noise"] for r in trained}):
        for ratio in sorted({r["ratio"] for r in trained if r["noise"] == noise} - {1.0}):
            rows = [r for r in trained if r["noise"] == noise and r["ratio"] in (ratio, 1.0)]
            models = len({(r["size"], r["seed"]) for r in rows})
            lines += [
                "",
                f"{noise:.0%} noise, ratio {ratio}, {models} base models",
                aligned_table(table(rows), text_columns=1),
            ]
    return lines


def table(results: Sequence[Result]) -> list[list[str]]:
    """A row for each arm: accuracy over mastered and learnable skills, its difference to `random`
    with a 95 % interval, both kinds apart, and what its selection is made of; in per cent."""
    kinds = [kind for kind in KINDS if kind not in SPOILT]
    head = ["trained on", "right", "against random", "learnable", "mastered", "samples", "steps"]
    rows = [[*head, *kinds, "spoilt"]]
    by_arm = {arm: [r for r in results if r["arm"] == arm] for arm in TRAINED}
    random = {_cell(r): overall(r) for r in by_arm["random"]}
    for arm, found in sorted(
        by_arm.items(), key=lambda item: -float(np.mean([overall(r) for r in item[1]]))
    ):
        differences = [overall(r) - random[_cell(r)] for r in found]
        counts = {kind: share_of_kinds(found, [kind]) for kind in kinds}
        rows.append(
            [
                arm,
                _percent(np.mean([overall(r) for r in found])),
                "" if arm == "random" else interval(differences),
                _percent(np.mean([skills(r, LEARNABLE) for r in found])),
                _percent(np.mean([skills(r, MASTERED) for r in found])),
                f"{np.mean([r['samples'] for r in found]):.0f}",
                f"{np.mean([r['steps'] for r in found]):.0f}",
                *(_percent(share) for share in counts.values()),
                _percent(share_of_kinds(found, SPOILT)),
            ]
        )
    return rows


def interval(differences: Sequence[float]) -> str:
    """The mean difference in points, and the half width of its 95 % interval: Student's t over the
    base models."""
    difference = seed_difference(differences)
    half = "" if difference.half_width is None else f" ± {100 * difference.half_width:.1f}"
    return f"{100 * difference.mean:+.1f}{half}"


def _cell(result: Result) -> tuple[str, int]:
    return result["size"], result["seed"]


def skills(result: Result, skills: Any) -> float:
    """The share of right answers, over these skills."""
    return float(np.mean([result["accuracy"][skill] for skill in skills]))


def overall(result: Result) -> float:
    """The share of right answers, over mastered and learnable skills."""
    return skills(result, [*MASTERED, *LEARNABLE])


def share_of_kinds(results: Sequence[Result], kinds: Any) -> float:
    """The share of the selections that is of these kinds."""
    return float(
        np.mean([sum(r["kinds"].get(kind, 0) for kind in kinds) / r["samples"] for r in results])
    )


def _mean_accuracy(results: Sequence[Result]) -> dict[str, float]:
    skills = results[0]["accuracy"]
    return {skill: float(np.mean([r["accuracy"][skill] for r in results])) for skill in skills}


def _percent(share: Any) -> str:
    return f"{100 * share:.0f}"
