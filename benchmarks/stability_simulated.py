"""Are the estimates of stability right where the truth is known?

`python -m benchmarks.stability_simulated`

Pools whose ΔNLL and ΔH are drawn, with noise of several kinds. Estimates from a few single runs
stand beside what hundreds select, and beside the overlap of means of many.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.common import save
from instructdiff_ray.results.console import aligned_table
from instructdiff_ray.selection.stability import (
    CORE_PROBABILITY,
    DomainModel,
    SingleRuns,
    shared_pairs,
)

COUNT, CUT, TOP = 2000, 200, 200
KINDS = (
    "small",
    "middle",
    "large",
    "middle unequal",
    "middle shared",
    "middle unequal shared",
    "middle unequal skewed",
)
NOISE = {"small": 0.06, "middle": 0.12, "large": 0.2}
MEANS, REPEATS = (1, 4, 16, 64), (3, 5, 8)
TRIALS, TRUE_RUNS, TRUE_MEANS = 8, 600, 120


@dataclass(frozen=True)
class World:
    """change: [2, n], ΔNLL and ΔH; deviation: [2, n], of each sample's own noise; shared:
    [2, directions, n], noise that the samples of a repeat share."""

    change: np.ndarray
    deviation: np.ndarray
    shared: np.ndarray

    def runs(self, draw: np.random.Generator, count: int, mean_of: int = 1) -> SingleRuns:
        """So many selections, each by the mean of so many repeats."""
        size = (count, self.shared.shape[1])
        along = np.einsum("rd,mdn->rmn", draw.normal(size=size), self.shared)
        noise = along + self.deviation * draw.normal(size=(count, *self.change.shape))
        values = self.change + noise / np.sqrt(mean_of)
        selected = np.stack([select_plainly(*run) for run in values])
        return SingleRuns(values[:, 0], values[:, 1], selected, np.zeros(COUNT), CUT)


def make_world(kind: str) -> World:
    """A pool with this kind of noise."""
    draw, words = np.random.default_rng(1), kind.split()
    entropy = draw.normal(0, 0.2, COUNT)
    if "skewed" in words:
        entropy += draw.exponential(0.2, COUNT)
    change = np.stack([draw.normal(0, 0.2, COUNT) - entropy / 2, entropy])
    deviation = np.full((2, COUNT), NOISE[words[0]])
    if "unequal" in words:
        deviation = deviation * np.exp(0.6 * draw.normal(size=COUNT))
    if "shared" not in words:
        return World(change, deviation, np.zeros((2, 1, COUNT)))
    shared = 0.45 * deviation[:, None] * draw.normal(size=(2, 3, COUNT))
    shared[:, 0] += 0.3  # and all samples alike
    return World(change, 0.6 * deviation, shared)


def select_plainly(nll: np.ndarray, entropy: np.ndarray) -> np.ndarray:
    """Algorithm 1, as a mask."""
    band = np.argsort(nll)[CUT : COUNT - CUT]
    selected = np.zeros(COUNT, bool)
    selected[band[np.argsort(entropy[band])[:TOP]]] = True
    return selected


def measure(kind: str) -> dict[str, Any]:
    """The truth of one kind, and for each number of repeats the mean estimates of some trials."""
    world, draw = make_world(kind), np.random.default_rng(2)
    singles = world.runs(draw, TRUE_RUNS).selected
    truth = singles.mean(axis=0)
    true = {}
    for mean_of in MEANS:
        selected = singles if mean_of == 1 else world.runs(draw, TRUE_MEANS, mean_of).selected
        shared, size = shared_pairs(selected[:TRUE_MEANS])
        true[mean_of] = shared / size
    estimates = {}
    for repeats in REPEATS:
        counted, modelled, errors, core = [], [], [], []
        for _ in range(TRIALS):
            runs = world.runs(draw, repeats)
            model, (shared, size) = DomainModel.fit(runs), shared_pairs(runs.selected)
            probability = model.probabilities(runs)
            counted.append(shared / size)
            modelled.append([model.overlap(mean_of) for mean_of in MEANS])
            errors.append(float(np.mean((probability - truth) ** 2)))
            core.append(int((probability >= CORE_PROBABILITY).sum()))
        estimates[repeats] = {
            "counted": [float(np.mean(counted)), float(np.std(counted))],
            "modelled": dict(zip(MEANS, np.mean(modelled, axis=0).tolist(), strict=True)),
            "error_of_probability": float(np.sqrt(np.mean(errors))),
            "stable_core": float(np.mean(core)),
        }
    true_core = int((truth >= CORE_PROBABILITY).sum())
    return {"true": true, "stable_core": true_core, "estimates": estimates}


def main() -> None:
    """Measure all kinds."""
    figures = {kind: measure(kind) for kind in KINDS}
    rows = [["noise", "from", "counted", *(f"mean of {n}" for n in MEANS), "core", "error of p"]]
    for kind, found in figures.items():
        overlaps = [f"{share:.3f}" for share in found["true"].values()]
        rows.append([kind, "truth", overlaps[0], *overlaps, str(found["stable_core"]), ""])
        for repeats, one in found["estimates"].items():
            modelled = [f"{share:.3f}" for share in one["modelled"].values()]
            counted, core = f"{one['counted'][0]:.3f}", f"{one['stable_core']:.0f}"
            error = f"{one['error_of_probability']:.3f}"
            rows.append(["", str(repeats), counted, *modelled, core, error])
    print(aligned_table(rows, text_columns=2))
    save("stability-simulated", {"samples": COUNT, "kinds": figures})


if __name__ == "__main__":
    main()
