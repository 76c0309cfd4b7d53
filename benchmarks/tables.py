"""The tables of docs/evidence.md and docs/strategies.md, in Markdown, from what was measured.

`python -m benchmarks.tables`
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from benchmarks.common import result_path
from benchmarks.corrupted import HELD_OUT, TUNED, percent, sum_selected
from benchmarks.world.arms import FULL, ORACLE
from benchmarks.world.population import SPOILT
from benchmarks.world.table import interval, overall, share_of_kinds, skills
from benchmarks.world.tasks import LEARNABLE

Run = dict[str, Any]
POOLS = {
    "code_gpteacher": "code (GPTeacher)",
    "math_gsm8k": "GSM8K",
    "medical_chatdoctor5k": "ChatDoctor",
    "general_roleplay": "role play (GPTeacher)",
}
METHOD = "instructdiff"
GUARDS = {
    METHOD: "Algorithm 1",
    f"{METHOD}, typical": "`typical`",
    f"{METHOD}, complete": "`complete`",
    f"{METHOD}, mismatched": "`mismatched`",
    f"{METHOD}, typical + complete": "`typical` and `complete`",
}
ARMS = {
    METHOD: "default",
    f"{METHOD}, guard=none": "`guard=none`",
    f"{METHOD}, no filter": "no filter",
    f"{METHOD}, mean of 4 calibrations": "mean of 4",
    f"{METHOD}, highest ΔH": "highest ΔH",
    ORACLE: "oracle",
    FULL: "whole pool",
}


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; the first row of cells is its head."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def runs_of(pool: str, held_out: bool = False) -> list[Run]:
    """What benchmarks.corrupted measured of a pool."""
    name = f"corrupted-{'held-out-' * held_out}{pool}"
    runs: list[Run] = json.loads(result_path(name).read_text())["runs"]
    return runs


def spoilt_of_selection(runs: Sequence[Run], variant: str) -> str:
    """Per cent of the selections that is spoilt."""
    counts = [run["figures"][variant]["selected_and_all"] for run in runs]
    return percent(
        [
            [sum(n[0] for kind, n in count.items() if kind != "intact"), sum_selected(count)]
            for count in counts
        ]
    )


def intact_kept(runs: Sequence[Run], variant: str) -> str:
    """Per cent of Algorithm 1's intact samples that the variant selects too."""
    return f"{100 * np.mean([run['figures'][variant]['intact_kept'] for run in runs]):.0f}"


def corrupted(variants: dict[str, str], held_out: bool = False) -> str:
    """By pool and share: how much of each variant's selection is spoilt."""
    rows = []
    for pool, name in POOLS.items():
        for part in (0.01, 0.05, 0.2):
            runs = [run for run in runs_of(pool, held_out) if run["share"] == part]
            if not runs:
                continue
            cells = [spoilt_of_selection(runs, variant) for variant in variants]
            kept = intact_kept(runs, f"{METHOD}, typical")
            rows.append([name, f"{100 * part:g}", str(len(runs)), *cells, kept])
            name = ""
    head = ["pool", "spoilt, of the pool", "seeds", *variants.values()]
    return markdown([*head, "of Algorithm 1's intact samples `typical` keeps"], rows)


def clean() -> str:
    """By clean pool: how much of Algorithm 1's selection each guard keeps."""
    variants = {name: label for name, label in GUARDS.items() if name != METHOD}
    rows = []
    for pool, name in POOLS.items():
        runs = [run for run in runs_of(pool) if run["share"] == 0]
        rows.append([name, *(intact_kept(runs, variant) for variant in variants)])
    return markdown(["clean pool", *variants.values()], rows)


def of_damages(runs: Sequence[Run], variant: str, kinds: Sequence[str]) -> list[str]:
    """Per cent of the spoilt samples of each kind that is selected, over these runs."""
    counts = [run["figures"][variant]["selected_and_all"] for run in runs]
    of_kinds = [np.sum([count[kind] for count in counts], axis=0) for kind in kinds]
    return [f"{100 * selected / total:.0f}" for selected, total in of_kinds]


def by_damage(variants: Sequence[str], held_out: bool = False) -> str:
    """By kind of damage, a fifth spoilt, over all pools and seeds."""
    kinds = [*(HELD_OUT if held_out else TUNED)]
    runs = [run for pool in POOLS for run in runs_of(pool, held_out) if run["share"] == 0.2]
    rows = [[label(variant), *of_damages(runs, variant, kinds)] for variant in variants]
    return markdown(["", *kinds], rows)


def strategies() -> str:
    """By strategy, over all pools and seeds: the spoilt share of the selection, lowest and highest
    run; and what is selected of each kind of damage."""
    runs = [run for pool in POOLS for run in runs_of(pool) if run["share"] > 0]
    twentieth, fifth = ([run for run in runs if run["share"] == part] for part in (0.05, 0.2))
    rows = []
    for variant in runs[0]["figures"]:
        if all(variant in run["figures"] for run in runs):
            shares = [spoilt_of_selection(part, variant) for part in (twentieth, fifth)]
            rows.append([label(variant), *shares, *of_damages(fifth, variant, [*TUNED])])
    return markdown(["strategy", "5 % of the pool spoilt", "20 % spoilt", *TUNED], rows)


def label(variant: str) -> str:
    """How the documents call it."""
    name, _, rest = variant.partition(", ")
    if name != METHOD:
        return f"`{variant}`"
    if variant == METHOD:
        return f"`{METHOD}`, `guard=none`"
    if rest == "typical":
        return f"`{METHOD}` (the default, `typical`)"
    if variant in GUARDS:
        return f"`{METHOD}`, {GUARDS[variant]}"
    return f"`{METHOD}`, `guard=none`, {rest}"


def world_cells(results: Sequence[Run]) -> Iterable[tuple[float, float, list[Run]]]:
    """Share of noise, ratio, and the results there; the main ratio first."""
    trained = [result for result in results if "noise" in result]
    settings = {(r["ratio"] != 0.1, r["noise"], r["ratio"]) for r in trained if r["ratio"] < 1}
    for _, noise, ratio in sorted(settings):
        yield noise, ratio, [r for r in trained if r["noise"] == noise and r["ratio"] in (ratio, 1)]


def against_random(results: Sequence[Run], arm: str) -> str:
    """By how many points more of the answers are right, with its 95 % interval."""
    random = {(r["size"], r["seed"]): overall(r) for r in results if r["arm"] == "random"}
    of_arm = [r for r in results if r["arm"] == arm]
    return interval([overall(r) - random[r["size"], r["seed"]] for r in of_arm]).replace("-", "−")


def mean_percent(results: Sequence[Run], arm: str, figure: Callable[[Run], float]) -> str:
    """The mean of a share over an arm's results."""
    return f"{100 * np.mean([figure(r) for r in results if r['arm'] == arm]):.0f}"


def spoilt(result: Run) -> float:
    """Of the selection."""
    return share_of_kinds([result], SPOILT)


def world(results: Sequence[Run], arms: dict[str, str]) -> str:
    """By noise and ratio: what random samples teach, and how much more other arms do."""
    rows = []
    for noise, ratio, cell in world_cells(results):
        rows.append(
            [
                f"{100 * noise:g} %",
                f"{ratio:g}",
                mean_percent(cell, "random", overall),
                *(against_random(cell, arm) for arm in arms),
                *(mean_percent(cell, arm, spoilt) for arm in (FULL, *[*arms][:2])),
            ]
        )
    labels = [*arms.values()]
    head = ["noise", "ratio", "`random`: right", *labels]
    return markdown([*head, "spoilt: pool", *labels[:2]], rows)


def world_arms(cell: Sequence[Run]) -> str:
    """All arms of one cell, best first."""
    arms = sorted(
        dict.fromkeys(result["arm"] for result in cell),
        key=lambda arm: -np.mean([overall(r) for r in cell if r["arm"] == arm]),
    )
    rows = []
    for arm in arms:
        samples = np.mean([r["samples"] for r in cell if r["arm"] == arm])
        rows.append(
            [
                f"`{arm}`",
                mean_percent(cell, arm, overall),
                "" if arm == "random" else against_random(cell, arm),
                mean_percent(cell, arm, lambda result: skills(result, LEARNABLE)),
                f"{samples:,.0f}",
                mean_percent(cell, arm, spoilt),
            ]
        )
    head = ["trained on", "right", "against random", "learnable tasks right", "samples"]
    return markdown([*head, "of the selection spoilt"], rows)


def main() -> None:
    """Print all tables, of one model's pools and of the world."""
    results = json.loads(result_path("world").read_text())["results"]
    print(world(results, ARMS))
    for noise, ratio, cell in world_cells(results):
        if (noise, ratio) == (0.05, 0.1):
            print(world_arms(cell))
    print(corrupted({**GUARDS, "random": "`random`"}))
    print(clean())
    print(by_damage([*GUARDS, "random", "ifd"]))
    print(corrupted({name: GUARDS[name] for name in [*GUARDS][:2]}, held_out=True))
    print(strategies())


if __name__ == "__main__":
    main()
