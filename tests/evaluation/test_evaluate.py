"""The evaluation: what arms are trained on, how they are compared, and once as a whole."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from matplotlib.image import imread

from instructdiff_ray.config.data import DataConfig, ModelConfig
from instructdiff_ray.config.run import Config
from instructdiff_ray.config.selection import SelectConfig
from instructdiff_ray.config.training import CalibrateConfig, EvaluateConfig
from instructdiff_ray.context import RunContext, prepare
from instructdiff_ray.evaluation.arms import (
    MATCHINGS,
    SelectingCost,
    TrainingSet,
    training_sets,
)
from instructdiff_ray.evaluation.comparison import (
    UNTRAINED,
    Evaluation,
    HeldOut,
    Trained,
    compare_arms,
)
from instructdiff_ray.evaluation.evaluate import evaluate
from instructdiff_ray.evaluation.outputs import tables, write
from instructdiff_ray.pipeline import draw_warmup, ingest_pool
from instructdiff_ray.pool.pool import Pool
from instructdiff_ray.progress import Progress
from instructdiff_ray.selection.budgets import SAMPLES, TOKENS
from instructdiff_ray.storage.filesystem import Folder

COST = SelectingCost(200, {"base": 500, "calibrated": 500}, 1.5)


def found_out(seeds: int, domains: tuple[str, ...] = ("code", "math")) -> Evaluation:
    """Two arms and the whole pool; the first arm learns less than random samples by a tenth of a
    nat at as many samples and by 0.2 at as many tokens, the whole pool more by 1."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(5, 60, 40)
    hard = rng.normal(3, 0.5, 40)
    held_out = HeldOut(
        np.array([f"{n:032x}".encode() for n in range(40)]),
        np.array(domains)[np.arange(40) % len(domains)],
        tokens,
    )

    def model(arm: str, matchings: tuple[str, ...], seed: int, nll: float) -> Trained:
        noise = rng.normal(0, 0.05, 40)
        sums = (hard + nll + noise - (noise * tokens).sum() / tokens.sum()) * tokens
        accuracy = {"sums acc": 0.5 - nll / 10}
        return Trained(arm, matchings, seed, 8, 300, 1200, COST, "/models/x", sums, accuracy)

    results = [model(UNTRAINED, MATCHINGS, 0, 2.0)]
    for seed in range(seeds):
        results += [
            model("instructdiff", MATCHINGS, seed, 0.2),
            model("random", (SAMPLES,), seed, 0.1),
            model("random", (TOKENS,), seed, 0.0),
            model("full", MATCHINGS, seed, -0.9),
        ]
    arms = ["instructdiff", "random", "full"]
    return Evaluation(arms, "instructdiff", "random", held_out, results)


def test_arms_are_compared_with_random_at_as_many_samples_and_at_as_many_tokens() -> None:
    evaluation = found_out(seeds=3)
    found = {(c.arm, c.matching, c.measure): c for c in compare_arms(evaluation)}
    differences = {
        key[:2]: c.difference.mean
        for key, c in found.items()
        if key[2] == "all domains" and c.difference
    }
    assert differences == pytest.approx(
        {
            ("instructdiff", SAMPLES): 0.1,
            ("instructdiff", TOKENS): 0.2,
            ("full", SAMPLES): -1.0,
            ("full", TOKENS): -0.9,
            (UNTRAINED, SAMPLES): 1.9,
            (UNTRAINED, TOKENS): 2.0,
        }
    )
    assert all(c.difference is None for key, c in found.items() if key[0] == "random")
    by_hand, held_out = [], evaluation.held_out
    code = held_out.domains == "code"
    for result in evaluation.of_arm("full", TOKENS):
        by_hand.append(result.nll_sums[code].sum() / held_out.tokens[code].sum())
    assert found["full", TOKENS, "code"].by_seed == pytest.approx(by_hand)
    score = found["full", TOKENS, "sums acc"].difference
    assert score is not None and score.mean == pytest.approx(0.09)
    assert len(score.by_seed) == 3 and score.half_width == pytest.approx(0, abs=1e-9)


def test_the_tables_have_both_comparisons_with_their_intervals() -> None:
    text = tables(found_out(seeds=2, domains=("general",)))
    lines = text.splitlines()
    assert "as many samples of each domain as instructdiff selects" in lines
    assert "as many response tokens of each domain as instructdiff selects" in lines
    mine = [line.split() for line in lines if line.startswith("instructdiff")]
    assert [line[5] for line in mine if "(" not in line[2]] == ["+0.1000", "+0.2000"]
    assert "over held-out samples and 2 seeds" in text
    assert "over held-out samples only" in tables(found_out(seeds=1))


def test_what_is_written_is_enough_to_compute_it_again(tmp_path: Path) -> None:
    evaluation = found_out(seeds=2)
    write(Folder(str(tmp_path)), evaluation, {"domain": "mixed"})
    assert imread(tmp_path / "evaluation.png").std() > 0.05
    written = json.loads((tmp_path / "evaluation.json").read_text())
    by_sample = pq.read_table(tmp_path / "evaluation.parquet")
    tokens = by_sample["response_tokens"].to_numpy()
    assert written["held_out"]["all domains"] == {"samples": 40, "tokens": int(tokens.sum())}
    for row in written["results"]:
        whole = by_sample[row["column"]].to_numpy().sum() / tokens.sum()
        assert row["nll"]["all domains"] == pytest.approx(whole)
    assert len({row["column"] for row in written["results"]}) == 9
    assert written["results"][1]["cost"] == {
        "trained": 200,
        "read": {"base": 500, "calibrated": 500},
        "seconds": 1.5,
    }
    assert {c["measure"] for c in written["comparisons"]} == {
        *("all domains", "code", "math", "sums acc")
    }


def make_context(
    folder: Path, model_folder: str, arms: list[str], **settings: object
) -> RunContext:
    """Over a pool of two domains, whose responses have very different lengths."""
    if not (folder / "pool.jsonl").exists():
        rows = [
            {
                "question": f"Double {n}. " + "Please. " * (n % 5),
                "answer": f"It is {2 * n}. " + "So it is. " * (n * n % 17),
                "domain": "long" if n % 3 else "short",
            }
            for n in range(90)
        ]
        (folder / "pool.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = Config(
        data=DataConfig(path=str(folder / "pool.jsonl"), domain_column="domain"),
        model=ModelConfig(base=model_folder),
        calibrate=CalibrateConfig(epochs=2, learning_rate=1e-3, global_batch_size=4),
        evaluate=EvaluateConfig(arms=arms, holdout=0.3, seeds=1),
        storage=str(folder / "storage"),
        run_dir=str(folder / "run"),
    )
    return prepare(replace(config, **settings), Progress(io.StringIO()))


def lengths_of(pool: Pool) -> dict[str, tuple[str, int]]:
    return {
        row["sample_id"]: (row["domain"], row["response_tokens"])
        for table in pool.index(["sample_id", "domain", "response_tokens"])
        for row in table.to_pylist()
    }


def test_arms_give_of_each_domain_as_many_samples_or_tokens_as_the_first_selects(
    ray_session: None, model_folder: str, tmp_path: Path
) -> None:
    arms = ["length_ratio_max", "response_length", "random", "full", "zip_unique"]
    select = SelectConfig(ratio=0.2, budget="tokens", min_samples=3)
    context = make_context(tmp_path, model_folder, arms, select=select)
    _, pool = ingest_pool(context).divide(0.3, 0)
    sets = {(s.arm, *s.matchings): s for s in training_sets(context, pool)}
    assert list(dict.fromkeys(arm for arm, *_ in sets)) == arms
    lengths = lengths_of(pool)

    def size(of: TrainingSet, domain: str) -> tuple[int, int]:
        chosen = [lengths[i][1] for i in of.ids if lengths[i][0] == domain]
        return len(chosen), sum(chosen)

    first = sets[("length_ratio_max", *MATCHINGS)]
    assert set(sets[("full", *MATCHINGS)].ids) == {*lengths}
    for domain in ("long", "short"):
        samples, tokens = size(first, domain)
        longest = sorted((t for d, t in lengths.values() if d == domain), reverse=True)
        assert size(sets["response_length", SAMPLES], domain) == (samples, sum(longest[:samples]))
        count, held = size(sets["response_length", TOKENS], domain)
        assert held == sum(longest[:count]) >= tokens > sum(longest[: count - 1])
        for arm in ("random", "zip_unique"):
            assert size(sets[arm, SAMPLES], domain)[0] == samples
            assert tokens <= size(sets[arm, TOKENS], domain)[1] < tokens + longest[0]
        # The same ranking, as far as it goes.
        assert {*sets["response_length", TOKENS].ids} < {*sets["response_length", SAMPLES].ids}
    assert first.cost.trained == 0 and not first.cost.read
    mixture = SelectConfig(ratio=0.2, mixture={"long": 1.0})
    mixed = training_sets(make_context(tmp_path, model_folder, arms, select=mixture), pool)
    for of_arm in (s for s in mixed if s.arm != "full"):
        assert size(of_arm, "long")[0] > 0 == size(of_arm, "short")[0]


class Killed(Exception):
    """What a test ends an evaluation with."""


class EndsAt(io.StringIO):
    """A log that ends the command when a line is written to it."""

    def __init__(self, line: str) -> None:
        super().__init__()
        self.end = line

    def write(self, text: str) -> int:
        if text.startswith(self.end):
            raise Killed
        return super().write(text)


def artifacts(folder: Path, kind: str) -> dict[str, int]:
    """The finished artifacts of a kind, and when they were."""
    found = (folder / "storage" / kind).glob("*/manifest.json")
    return {path.parent.name: path.stat().st_mtime_ns for path in found}


@pytest.mark.slow
def test_a_further_arm_costs_itself_and_a_killed_evaluation_goes_on(
    ray_session: None, model_folder: str, tmp_path: Path
) -> None:
    arms = ["instructdiff", "random", "full"]
    context = make_context(tmp_path, model_folder, arms, select=SelectConfig(ratio=0.2))
    with pytest.raises(Killed):
        evaluate(replace(context, progress=Progress(EndsAt("seed 0, full"))))
    before = {kind: artifacts(tmp_path, kind) for kind in ("models", "scores")}
    assert len(before["models"]) == 4  # calibrated, and three trainings
    evaluation = evaluate(context)
    after = {kind: artifacts(tmp_path, kind) for kind in ("models", "scores")}
    for kind, finished in after.items():  # the whole pool's training and its scores alone
        assert before[kind].items() < finished.items() and len(finished) == len(before[kind]) + 1

    log = io.StringIO()
    evaluate(replace(context, progress=Progress(log)))
    assert {kind: artifacts(tmp_path, kind) for kind in after} == after
    assert log.getvalue().count("trained before") == 4
    assert not {"finetune", "calibrate", "score"} & {*log.getvalue().split()}

    more = make_context(
        tmp_path, model_folder, [*arms, "response_length"], select=SelectConfig(ratio=0.2)
    )
    evaluate(more)
    for kind, finished in after.items():  # two trainings, two passes over what is held out
        added = artifacts(tmp_path, kind)
        assert finished.items() < added.items() and len(added) == len(finished) + 2

    held_out, rest = ingest_pool(context, build=False).divide(0.3, 0)
    assert not set(held_out.ids()) & set(rest.ids()) and len(held_out) + len(rest) == 90
    trained = {(r.arm, *r.matchings): r for r in evaluation.results}
    untrained, all_of_them = trained[(UNTRAINED, *MATCHINGS)], trained[("full", *MATCHINGS)]
    mine, drawn = trained[("instructdiff", *MATCHINGS)], trained["random", SAMPLES]
    assert untrained.samples == 0 < mine.samples == drawn.samples < len(rest)
    assert all_of_them.samples == len(rest)
    assert all_of_them.nll_sums.sum() < mine.nll_sums.sum() < untrained.nll_sums.sum()
    tokens = {
        row["sample_id"]: row["tokens"]
        for table in rest.index(["sample_id", "tokens"])
        for row in table.to_pylist()
    }
    whole = sum(tokens.values())
    assert all_of_them.tokens == 2 * whole
    assert dict(mine.cost.read) == {"base": whole, "calibrated": whole}
    assert mine.cost.trained == 2 * sum(tokens[i] for i in draw_warmup(context, rest))
    assert drawn.cost.trained == 0 and not drawn.cost.read
