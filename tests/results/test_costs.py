"""A plan as a person reads it; what stands in it: tests/forecast/."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest

from instructdiff_ray.config.cluster import ClusterConfig, ScoreResources, TrainResources
from instructdiff_ray.config.data import DataConfig, ModelConfig
from instructdiff_ray.config.plan import PlanConfig
from instructdiff_ray.config.run import Config
from instructdiff_ray.config.training import CalibrateConfig
from instructdiff_ray.context import RunContext, prepare
from instructdiff_ray.demo.pool import write_pool
from instructdiff_ray.forecast.cost import DERIVED, known_rates
from instructdiff_ray.forecast.memory import training_memory
from instructdiff_ray.forecast.work import plan_run
from instructdiff_ray.progress import Progress
from instructdiff_ray.results.costs import plan_cost, plan_text


@pytest.fixture
def config(tmp_path: Path, model_folder: str) -> Config:
    write_pool(str(tmp_path / "pool.jsonl"), size=100)
    return Config(
        data=DataConfig(path=str(tmp_path / "pool.jsonl")),
        model=ModelConfig(base=model_folder),
        calibrate=CalibrateConfig(max_length=150, global_batch_size=16),
        storage=str(tmp_path / "storage"),
    )


def context_of(config: Config) -> RunContext:
    return prepare(config, Progress(io.StringIO()))


def test_a_plan_without_a_speed_says_so_and_how_to_get_one(config: Config) -> None:
    context = context_of(config)
    plan = plan_run(context)
    rates = known_rates(context, plan)
    text = plan_text(context, plan, rates, training_memory(context, plan))
    assert not rates and "speed       unknown: nothing was measured in this storage" in text
    assert "run with data.limit=1000 once" in text and "memory" not in text
    score = next(line for line in text.splitlines() if "base, calibrated" in line)
    assert score.split()[-2:] == ["unknown", "1"] and "price" not in text
    cost = plan_cost(context, plan, rates)
    assert cost["score"]["tokens"] == sum(w.tokens for w in plan.work if w.stage == "score")
    assert cost["score"]["seconds"] is cost["price"] is None


def test_with_a_speed_and_a_price_it_has_time_money_and_on_gpus_memory(config: Config) -> None:
    cluster = ClusterConfig(
        train=TrainResources(workers=8, gpus_per_worker=1),
        score=ScoreResources(max_actors=64, gpus_per_actor=None),
    )
    plan_config = PlanConfig(tokens_per_second=10.0, price_per_hour=36.0)
    context = context_of(replace(config, cluster=cluster, plan=plan_config))
    plan = plan_run(context)
    rates = known_rates(context, plan)
    assert rates["calibrate"].source == DERIVED
    text = plan_text(context, plan, rates, training_memory(context, plan))
    tokens = next(work.tokens for work in plan.work if work.stage == "score")
    cost = plan_cost(context, plan, rates)
    # One block of samples keeps one scorer busy, on one machine; a second costs a cent.
    assert cost["score"]["seconds"] == pytest.approx(tokens / 10)
    assert cost["price"] == pytest.approx(
        (cost["score"]["seconds"] + cost["calibrate"]["seconds"]) / 100
    )
    assert text.splitlines()[-1].startswith("not counted")
    (total,) = [line for line in text.splitlines() if line.startswith("all ")]
    assert total.split()[-1] == f"{cost['price']:,.2f}"
    assert "memory      training holds about 0." in text and "sharded over 8" in text
