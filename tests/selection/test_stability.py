"""Estimates from a few single runs, against pools whose truth is known by many."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from instructdiff_ray.config.selection import SelectConfig
from instructdiff_ray.pool.pool import Pool
from instructdiff_ray.scoring.spec import ScoreTable
from instructdiff_ray.selection.batches import RankingInputs
from instructdiff_ray.selection.certificate import rank_by_mean, single_runs
from instructdiff_ray.selection.counts import stability_counts
from instructdiff_ray.selection.ranking import rank, selected_ids
from instructdiff_ray.selection.stability import (
    CORE_PROBABILITY,
    MOST_REPEATS,
    DomainModel,
    SingleRuns,
    fewest_repeats,
    shared_pairs,
    stability,
)
from instructdiff_ray.selection.strategies import STRATEGIES
from tests.selection.test_select import make_pool, written_scores

COUNT, CUT, TOP = 1000, 100, 100


@pytest.mark.parametrize("enough", [1, 2, 3, 600, 1000, 1001])
def test_the_fewest_repeats_that_reach_the_overlap(enough: int) -> None:
    found = fewest_repeats(lambda repeats: 0.9 if repeats >= enough else 0.5)
    assert found == (enough if enough <= MOST_REPEATS else None)


@dataclass(frozen=True)
class World:
    """Samples whose ΔNLL and ΔH are known, and how they vary over repeats: each for itself, and
    along directions that all samples of a repeat share."""

    change: np.ndarray  # [2, n]: ΔNLL, ΔH
    deviation: np.ndarray  # [2, n]
    shared: np.ndarray  # [2, directions, n]

    def repeat(self, draw: np.random.Generator, mean_of: int) -> np.ndarray:
        """[2, n], the mean of so many repeats."""
        own = self.deviation * draw.normal(size=self.change.shape)
        along = draw.normal(size=(1, self.shared.shape[1])) @ self.shared
        return self.change + (own + along[:, 0]) / np.sqrt(mean_of)

    def runs(self, draw: np.random.Generator, count: int, mean_of: int = 1) -> SingleRuns:
        values = np.stack([self.repeat(draw, mean_of) for _ in range(count)])
        selected = np.stack([plain_selection(*run) for run in values])
        none = np.zeros(values.shape[2])
        return SingleRuns(values[:, 0], values[:, 1], selected, none, CUT)


def plain_selection(nll: np.ndarray, entropy: np.ndarray) -> np.ndarray:
    band = np.argsort(nll)[CUT : len(nll) - CUT]
    selected = np.zeros(len(nll), bool)
    selected[band[np.argsort(entropy[band])[:TOP]]] = True
    return selected


def make_world(kind: str, size: float = 0.12) -> World:
    draw = np.random.default_rng(0)
    entropy = draw.normal(0, 0.2, COUNT)
    change = np.stack([draw.normal(0, 0.2, COUNT) - entropy / 2, entropy])
    deviation, shared = np.full((2, COUNT), size), np.zeros((2, 3, COUNT))
    if "unequal" in kind:
        deviation = deviation * np.exp(0.5 * draw.normal(size=COUNT))
    if "shared" in kind:
        shared = deviation[:, None] * 0.4 * draw.normal(size=shared.shape)
        deviation = deviation * 0.7
        shared[:, 0] += 0.3  # and all samples alike
    return World(change, deviation, shared)


def overlap_of(world: World, mean_of: int) -> float:
    runs = world.runs(np.random.default_rng(1), 60, mean_of)
    shared, size = shared_pairs(runs.selected)
    return shared / size


@pytest.mark.parametrize("kind", ["independent", "unequal", "shared", "unequal and shared"])
def test_estimates_are_those_of_many_runs(kind: str) -> None:
    world, draw = make_world(kind), np.random.default_rng(2)
    truth = world.runs(draw, 400).selected.mean(axis=0)
    true_overlap = {number: overlap_of(world, number) for number in (1, 4, 16)}
    estimates = []
    for _ in range(4):
        runs = world.runs(draw, 5)
        model = DomainModel.fit(runs)
        shared, size = shared_pairs(runs.selected)
        estimates.append(
            [shared / size, *(model.overlap(n) for n in true_overlap), model.probabilities(runs)]
        )
    counted, *modelled, _ = (np.mean([e[n] for e in estimates]) for n in range(5))
    assert counted == pytest.approx(true_overlap[1], abs=0.04)
    assert modelled == pytest.approx([*true_overlap.values()], abs=0.05)
    probability = np.concatenate([e[-1] for e in estimates])
    assert probability.sum() / len(estimates) == pytest.approx(TOP, rel=0.05)
    # Of those with about one probability, about as many are selected: a calibration curve.
    bins = np.digitize(probability, [0.05, 0.2, 0.4, 0.6, 0.8])
    for number in range(6):
        said = probability[bins == number].mean()
        assert np.tile(truth, len(estimates))[bins == number].mean() == pytest.approx(said, abs=0.1)
    # Nearer to the truth than what five runs count.
    errors = [np.mean((e[-1] - truth) ** 2) for e in estimates]
    assert np.mean(errors) < 0.5 * np.mean(truth * (1 - truth) / 5)


def test_the_number_of_repeats_that_is_needed_reaches_the_overlap() -> None:
    world = make_world("independent", size=0.06)
    runs = world.runs(np.random.default_rng(3), 5)
    found = stability([DomainModel.fit(runs)], 0.5, 5).repeats_needed
    assert found is not None and found > 2
    assert overlap_of(world, found) == pytest.approx(0.9, abs=0.03)
    noise = World(np.zeros((2, COUNT)), np.ones((2, COUNT)), np.zeros((2, 1, COUNT)))
    runs = noise.runs(np.random.default_rng(3), 5)
    assert stability([DomainModel.fit(runs)], 0.1, 5).repeats_needed is None


def test_repeats_that_agree_leave_nothing_to_chance() -> None:
    world = make_world("independent", size=1e-6)
    runs = world.runs(np.random.default_rng(4), 3)
    model = DomainModel.fit(runs)
    assert stability([model], 1.0, 3).repeats_needed == 1
    assert np.array_equal(model.probabilities(runs) > 0.5, runs.selected[0])


@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_few_and_equal_samples_are_no_error(count: int) -> None:
    equal = np.ones((2, count))
    selected = np.zeros((2, count), bool)
    selected[:, 0] = True
    runs = SingleRuns(equal, equal, selected, np.zeros(count), 0)
    model = DomainModel.fit(runs)
    probability = model.probabilities(runs)
    assert np.isfinite(probability).all() and 0 <= probability.min() <= probability.max() <= 1
    assert 0 <= model.overlap(1) <= 1


def repeated_scores(folder: Path, lost: int) -> tuple[Pool, dict[str, ScoreTable]]:
    """Base scores and three repeats over two domains; the last repeat lacks a sample."""
    pool, draw = make_pool(folder, ["math", "code"] * 100, [5] * 200), np.random.default_rng(5)
    base, change = draw.normal(3, 0.3, (2, 200)), draw.normal(0, 0.3, (2, 200))
    scores = {"base": written_scores(pool, "base", base, set())}
    for number, name in enumerate(("calibrated", "calibrated-1", "calibrated-2")):
        values = base - change + draw.normal(0, 0.1, (2, 200))
        gone = {lost} if number == 2 else set()
        scores[name] = written_scores(pool, name, values, gone)
    return pool, scores


def test_single_runs_have_the_budgets_of_the_mixture(tmp_path: Path) -> None:
    pool, scores = repeated_scores(tmp_path, lost=7)
    config = SelectConfig(ratio=0.2, mixture={"math": 1.0})
    inputs = RankingInputs(STRATEGIES["instructdiff"], lambda _: config, repeats=(0, 1, 2))
    ranking = rank_by_mean(pool, scores, inputs)
    selected = {name: runs.selected.sum(axis=1) for name, _, runs in single_runs(ranking)}
    assert [selected[name].tolist() for name in ("math", "code")] == [[39] * 3, [0] * 3]
    # Of a domain of which nothing is selected, nothing can be said.
    assert stability_counts(ranking)["domains"].keys() == {"math"}
    rows = pa.concat_tables(ranking.rows()).to_pylist()
    assert {r["selection_probability"] for r in rows if r["domain"] == "code"} == {0}


def test_a_ranking_by_several_is_by_their_mean(tmp_path: Path) -> None:
    pool, scores = repeated_scores(tmp_path, lost=7)
    strategy, config = STRATEGIES["instructdiff"], SelectConfig()
    inputs = RankingInputs(strategy, lambda _: config, guards=("typical",), repeats=(0, 1, 2))
    ranking = rank_by_mean(pool, scores, inputs)
    table = pa.concat_tables(ranking.rows())
    lost = next(iter(ranking.rejected["sample_id"].to_pylist()))
    assert ranking.rejected.num_rows == 1 and lost == [*pool.ids()][7]
    parts = [scores[n] for n in ("calibrated", "calibrated-1", "calibrated-2")]
    entropy = np.array(
        [np.delete(pa.concat_tables(s.read(["entropy"]))["entropy"].to_numpy(), 7) for s in parts]
    )
    assert np.array_equal(table["calibrated_entropy"].to_numpy(), entropy.mean(axis=0))
    delta = table["calibrated_nll"].to_numpy() - table["base_nll"].to_numpy()
    assert np.array_equal(table["delta_nll"].to_numpy(), delta)
    deviation = (table["base_entropy"].to_numpy() - entropy).std(axis=0, ddof=1)
    assert table["delta_entropy_std"].to_numpy() == pytest.approx(deviation, abs=1e-5)
    figures = stability_counts(ranking)
    assert figures["repeats"] == 3 and figures["domains"].keys() == {"math", "code"}
    core = table["selection_probability"].to_numpy() >= CORE_PROBABILITY
    assert figures["stable_core"] == core.sum()
    assert figures["stable_core"] == sum(d["stable_core"] for d in figures["domains"].values())
    # The overlap is that of the three single runs, each ranked as ever.
    pool, scores = repeated_scores(tmp_path / "again", lost=300)
    figures = stability_counts(rank_by_mean(pool, scores, inputs))
    single = RankingInputs(strategy, lambda _: config, guards=("typical",))
    runs = [
        {*selected_ids(rank(pool, {"base": scores["base"], "calibrated": scores[name]}, single))}
        for name in ("calibrated", "calibrated-1", "calibrated-2")
    ]
    shared = [len(runs[a] & runs[b]) for a, b in ((0, 1), (0, 2), (1, 2))]
    assert figures["overlap"] == pytest.approx(np.mean(shared) / np.mean([*map(len, runs)]))
