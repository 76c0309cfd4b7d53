"""Seconds, machines and money, from work and speeds."""

from __future__ import annotations

import pytest

from instructdiff_ray.config.cluster import ClusterConfig, ScoreResources, TrainResources
from instructdiff_ray.config.plan import PlanConfig
from instructdiff_ray.config.run import Config
from instructdiff_ray.forecast.cost import Rate, cost_of, machines, processes, seconds
from instructdiff_ray.forecast.work import CALIBRATE, SCORE, Work

LARGE = Config(
    cluster=ClusterConfig(
        train=TrainResources(workers=8, gpus_per_worker=1),
        score=ScoreResources(max_actors=64, gpus_per_actor=None),
    ),
    plan=PlanConfig(price_per_hour=30),
)
PASS = Work(SCORE, 1, ("base", "calibrated"), 1_000_000, 6.4e9)


def test_machines_hold_all_scorers_and_workers_that_have_work() -> None:
    assert (processes(LARGE, SCORE, 1e6), machines(LARGE, SCORE, 1e6)) == (64, 8)
    # Five blocks keep five scorers busy.
    assert (processes(LARGE, SCORE, 5000), machines(LARGE, SCORE, 5000)) == (5, 1)
    assert (processes(LARGE, CALIBRATE), machines(LARGE, CALIBRATE)) == (8, 1)
    assert (processes(Config(), SCORE, 1e6), machines(Config(), SCORE, 1e6)) == (1, 1)
    several = ScoreResources(max_actors=6, gpus_per_actor=4)
    split = Config(cluster=ClusterConfig(score=several), plan=PlanConfig(gpus_per_machine=8))
    assert (processes(split, SCORE, 1e6), machines(split, SCORE, 1e6)) == (24, 3)


def test_time_is_that_of_starts_and_tokens_and_unknown_without_a_rate() -> None:
    rates = {SCORE: Rate(10_000, 60.0, "")}
    assert seconds(LARGE, PASS, rates) == pytest.approx(60 + 10_000)
    assert seconds(LARGE, Work(CALIBRATE, 1, ("calibrated",), 10, 10), rates) is None


def test_the_price_is_that_of_all_machine_hours() -> None:
    cost = cost_of(LARGE, [(SCORE, 1e6, 5e9, 3600.0), (CALIBRATE, 1e5, 2e9, 1800.0)])
    assert cost["score"] == {"tokens": 5_000_000_000, "seconds": 3600.0, "machine_hours": 8.0}
    assert cost["calibrate"]["machine_hours"] == 0.5
    assert (cost["machine_hours"], cost["price"]) == (8.5, 255.0)
    unknown = cost_of(LARGE, [(SCORE, 1e6, 5e9, None), (CALIBRATE, 1e5, 2e9, 1800.0)])
    assert unknown["score"]["tokens"] == 5_000_000_000
    assert unknown["machine_hours"] is unknown["price"] is None
    assert cost_of(Config(), [(SCORE, 1, 1, 1.0)])["price"] is None
