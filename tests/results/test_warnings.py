"""Each warning on a ranking made to deserve it, and none on one that does not."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from instructdiff_ray.config.selection import SelectConfig
from instructdiff_ray.results.composition import (
    NEAR_IDENTICAL,
    OPENING,
    SOURCE,
    TEMPLATE,
    Concentration,
)
from instructdiff_ray.results.warnings import RunWarning, find_warnings
from instructdiff_ray.selection.batches import RankingInputs
from instructdiff_ray.selection.certificate import rank_by_mean
from instructdiff_ray.selection.counts import (
    fate_counts,
    guard_counts,
    mixture_counts,
    scored_counts,
    token_counts,
)
from instructdiff_ray.selection.ranking import rank
from instructdiff_ray.selection.strategies import STRATEGIES, repeat_scores
from tests.selection.test_select import make_pool, written_scores

COUNT = 1200


class Scores:
    """NLL and entropy under both models, as calibration usually changes them."""

    def __init__(self) -> None:
        draw = np.random.default_rng(0)
        self.tokens = draw.integers(5, 200, COUNT)
        self.base_nll = draw.normal(3.0, 0.4, COUNT)
        self.base_entropy = self.base_nll + draw.normal(0, 0.2, COUNT)
        self.nll = self.base_nll - draw.normal(0.8, 0.2, COUNT)
        self.entropy = self.base_entropy - draw.normal(0.4, 0.2, COUNT)


def warned(
    folder: Path,
    scores: Scores,
    truncated: int = 0,
    guard: str = "typical",
    domains: list[str] | None = None,
    concentrations: Sequence[Concentration] = (),
    alone: float | None = None,
    **settings: Any,
) -> dict[str, RunWarning]:
    pool = make_pool(folder, domains or ["math"] * COUNT, scores.tokens.tolist(), truncated)
    tables = {
        "base": written_scores(pool, "base", np.array([scores.base_nll, scores.base_entropy]), {3}),
        "calibrated": written_scores(pool, "cal", np.array([scores.nll, scores.entropy]), {5}),
    }
    guards = ["typical"]
    if alone is not None:
        tables["alone"] = written_scores(pool, "alone", np.full((2, COUNT), alone), set())
        guards.append("mismatched")
    config = SelectConfig(guard=guard, **settings)
    inputs = RankingInputs(STRATEGIES["instructdiff"], lambda _: config, guards=tuple(guards))
    ranking = rank(pool, tables, inputs)
    counts = {**pool.counts, **scored_counts(ranking), **fate_counts(ranking)}
    counts |= token_counts(ranking)
    mixture, guards_found = mixture_counts(ranking), guard_counts(ranking)
    found = find_warnings(ranking, counts, guards_found, mixture, concentrations)
    for warning in found:
        assert warning.value != warning.threshold
    return {warning.name: warning for warning in found}


def test_a_usual_run_has_none(tmp_path: Path) -> None:
    assert not warned(tmp_path, Scores())


@pytest.mark.parametrize(("guard", "names"), [("none", ["atypical selection"]), ("typical", [])])
def test_noise_in_the_selection(tmp_path: Path, guard: str, names: list[str]) -> None:
    scores = Scores()
    noise = slice(20, 80)
    scores.base_nll[noise] += 5
    scores.nll[noise] = scores.base_nll[noise] - 0.8
    scores.entropy[noise] = scores.base_entropy[noise] + 1  # the lowest ΔH of all
    found = warned(tmp_path, scores, guard=guard)
    assert [*found] == names
    if names:
        assert found["atypical selection"].value == pytest.approx(0.5, abs=0.05)
        assert "select.guard=typical" in found["atypical selection"].message


def test_a_guard_that_excludes_much_of_a_domain(tmp_path: Path) -> None:
    scores = Scores()
    scores.base_nll[:200] += 5
    scores.nll[:200] += 5
    found = warned(tmp_path, scores, domains=["law"] * 600 + ["math"] * 600)
    assert [*found] == ["much excluded"]
    assert found["much excluded"].value == pytest.approx(1 / 3, abs=0.1)
    assert "domain law" in found["much excluded"].message


def test_a_guard_that_leaves_less_than_the_ratio(tmp_path: Path) -> None:
    found = warned(tmp_path, Scores(), guard="mismatched", alone=0.1)
    assert [*found] == ["much excluded", "short selection"]
    assert found["short selection"].value == 0


@pytest.mark.parametrize("budget", ["samples", "tokens"])
def test_a_mixture_of_more_than_a_domain_may_give(tmp_path: Path, budget: str) -> None:
    scores, domains = Scores(), ["law"] * 200 + ["math"] * 1000
    scores.base_nll[:80] += 5  # of law, which the guard excludes
    scores.nll[:80] += 5
    settings = {"domains": domains, "budget": budget, "ratio": 0.15}
    found = warned(tmp_path / "a", scores, mixture={"law": 0.9}, **settings)
    warning = found["mixture not met"]
    assert warning.value < 0.9 and "of law" in warning.message and "math" not in warning.message
    assert "short selection" not in found
    (ratio,) = re.findall(r"lower select\.ratio to (0\.\d+)", warning.message)
    settings["ratio"] = float(ratio)
    assert "mixture not met" not in warned(tmp_path / "b", scores, mixture={"law": 0.9}, **settings)
    settings["ratio"] = 1.1 * float(ratio)
    assert "mixture not met" in warned(tmp_path / "c", scores, mixture={"law": 0.9}, **settings)


def test_a_mixture_of_a_domain_that_may_give_nothing(tmp_path: Path) -> None:
    settings = {"domains": ["law"] * 600 + ["math"] * 600, "guard": "mismatched", "alone": 0.1}
    warning = warned(tmp_path, Scores(), mixture={"law": 0.5}, **settings)["mixture not met"]
    assert warning.value == 0 and "leave law out of the mixture" in warning.message


def test_a_calibration_without_effect(tmp_path: Path) -> None:
    scores = Scores()
    scores.nll[600:] = (scores.base_nll + (scores.nll - scores.base_nll) / 100)[600:]
    found = warned(tmp_path, scores, domains=["law"] * 600 + ["math"] * 600)
    assert "domain math" in found["calibration changed nothing"].message


def test_a_calibration_that_destroys_the_model(tmp_path: Path) -> None:
    scores = Scores()
    scores.nll = scores.base_nll + 1.5
    assert [*warned(tmp_path, scores)] == ["calibration did harm"]


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("follows", ["length", "base NLL"])
def test_a_ranking_that_something_simpler_gives(tmp_path: Path, follows: str, sign: int) -> None:
    scores = Scores()
    values = scores.tokens if follows == "length" else scores.base_nll
    order = np.argsort(np.argsort(values)) / COUNT
    scores.entropy = scores.base_entropy - sign * order
    found = warned(tmp_path, scores)
    assert [*found] == [f"ΔH follows {follows}"]
    assert sign * found[f"ΔH follows {follows}"].value > 0.99


def test_much_that_was_cut_off(tmp_path: Path) -> None:
    assert [*warned(tmp_path, Scores(), truncated=COUNT // 20)] == ["truncated"]


def test_a_domain_too_small_for_its_ratio_and_its_filter(tmp_path: Path) -> None:
    domains = ["math"] * (COUNT - 9) + ["law"] * 9
    found = warned(tmp_path, Scores(), domains=domains)
    assert [*found] == ["small domain", "filter cuts nothing"]
    assert all("domain law has 9 samples" in warning.message for warning in found.values())


@pytest.mark.parametrize("kind", [SOURCE, TEMPLATE, OPENING, NEAR_IDENTICAL])
def test_a_source_or_a_text_that_fills_the_selection(tmp_path: Path, kind: str) -> None:
    as_in_pool = Concentration(kind, "a.jsonl", selected=0.9, pool=0.8)
    assert not warned(tmp_path / "usual", Scores(), concentrations=[as_in_pool])
    more = Concentration(kind, "a.jsonl", selected=0.9, pool=0.5)
    warning = warned(tmp_path / "more", Scores(), concentrations=[more])[kind]
    assert warning.value == pytest.approx(0.4)
    assert "90%" in warning.message and "50%" in warning.message


@pytest.mark.parametrize(("noise", "names"), [(0.02, []), (3.0, ["unstable selection"])])
def test_calibrations_that_disagree(tmp_path: Path, noise: float, names: list[str]) -> None:
    scores, draw = Scores(), np.random.default_rng(1)
    pool = make_pool(tmp_path, ["math"] * COUNT, scores.tokens.tolist())
    base = np.array([scores.base_nll, scores.base_entropy])
    tables = {"base": written_scores(pool, "base", base, set())}
    for repeat in range(3):
        values = np.array([scores.nll, scores.entropy]) + draw.normal(0, noise, (2, COUNT))
        tables[repeat_scores(repeat)] = written_scores(pool, str(repeat), values, set())
    inputs = RankingInputs(
        STRATEGIES["instructdiff"], lambda _: SelectConfig(guard="none"), repeats=(0, 1, 2)
    )
    ranking = rank_by_mean(pool, tables, inputs)
    counts = {**pool.counts, **scored_counts(ranking), **fate_counts(ranking)}
    found = {w.name: w for w in find_warnings(ranking, counts, {}, {}, []) if "unstable" in w.name}
    assert [*found] == names
    if names:
        assert "domain math" in found["unstable selection"].message
        assert found["unstable selection"].value < found["unstable selection"].threshold
