"""What a run will do, foretold from source files and storage; against real runs: test_jobs.py and
`python -m benchmarks.plan`. No Ray runs here."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from instructdiff_ray.config.data import DataConfig, ModelConfig
from instructdiff_ray.config.run import Config
from instructdiff_ray.config.selection import SelectConfig
from instructdiff_ray.config.training import CalibrateConfig
from instructdiff_ray.context import RunContext, prepare
from instructdiff_ray.demo.pool import write_pool
from instructdiff_ray.errors import UserError
from instructdiff_ray.forecast.work import CALIBRATE, SCORE, Plan, Work, plan_run
from instructdiff_ray.models.encoding import EncoderSpec
from instructdiff_ray.pool import preview
from instructdiff_ray.progress import Progress
from instructdiff_ray.scoring.shards import shard_schema, write_piece
from instructdiff_ray.scoring.spec import ScoreSpec
from instructdiff_ray.scoring.store import score_stores

EPOCHS = 2


@pytest.fixture
def config(tmp_path: Path, model_folder: str) -> Config:
    write_pool(str(tmp_path / "pool.jsonl"), size=200)
    return Config(
        data=DataConfig(path=str(tmp_path / "pool.jsonl")),
        model=ModelConfig(base=model_folder),
        calibrate=CalibrateConfig(max_length=150, ratio=0.1, epochs=EPOCHS),
        storage=str(tmp_path / "storage"),
    )


def context_of(config: Config) -> RunContext:
    return prepare(config, Progress(io.StringIO()))


def planned(config: Config) -> Plan:
    """A plan; nothing is left behind."""
    before = sorted(Path(config.storage).rglob("*"))
    plan = plan_run(context_of(config))
    assert sorted(Path(config.storage).rglob("*")) == before
    return plan


def work_of(plan: Plan) -> list[tuple[str, int, tuple[str, ...]]]:
    return [(work.stage, work.round, work.models) for work in plan.work]


def index_of(plan: Plan) -> list[dict[str, Any]]:
    return [row for table in plan.pool.index() for row in table.to_pylist()]


def test_a_new_run_trains_on_its_share_and_passes_once_over_the_pool(config: Config) -> None:
    plan = planned(config)
    assert plan.exact and not plan.in_storage
    calibrate, score = plan.work
    index = index_of(plan)
    tokens = sum(row["tokens"] for row in index)
    assert score == Work(SCORE, 1, ("base", "calibrated"), len(index), 2 * tokens)
    assert calibrate.samples == len(index) // 10
    longest = sorted((row["tokens"] for row in index), reverse=True)[: len(index) // 10]
    assert EPOCHS * len(index) // 10 < calibrate.tokens <= EPOCHS * sum(n + 1 for n in longest)


def test_a_pool_that_is_too_large_to_look_at_all_of_is_estimated(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = planned(config)
    monkeypatch.setattr(preview, "SAMPLED_ROWS", 100)
    plan = planned(config)
    assert not plan.exact and work_of(plan) == work_of(exact)
    for about, known in zip(plan.work, exact.work, strict=True):
        assert about.samples == pytest.approx(known.samples, rel=0.1)
        assert about.tokens == pytest.approx(known.tokens, rel=0.3)


def test_repeats_rounds_and_domains_are_counted_as_they_will_be_trained(config: Config) -> None:
    two = replace(config.calibrate, repeats=2)
    plan = planned(replace(config, rounds=2, calibrate=two))
    both, first = ("calibrated", "calibrated-1"), ("base", "calibrated")
    assert work_of(plan) == [
        (CALIBRATE, 1, both),
        (SCORE, 1, first),
        (SCORE, 1, ("calibrated-1",)),
        (CALIBRATE, 2, both),
        (SCORE, 2, both),  # the base model's are there by then
    ]
    assert plan.work[0].samples == 2 * (len(plan.pool) // 10)
    few = replace(config.calibrate, max_samples=7, repeats=2)
    assert planned(replace(config, calibrate=few)).work[0].samples == 14
    data = replace(config.data, domain_column="domain", max_reject_ratio=1.0)
    own = replace(config.calibrate, per_domain=True, ratio=0.5)
    plan = planned(replace(config, data=data, calibrate=own))
    domains = plan.pool.domains()
    assert {*plan.work[0].models} == {f"calibrated of {name}" for name in domains}
    assert sum(work.samples for work in plan.work[1:]) == len(plan.pool)


def test_a_later_round_trains_on_the_mixture(config: Config) -> None:
    data = replace(config.data, domain_column="domain", max_reject_ratio=1.0)
    mixed = replace(config, data=data, rounds=2)
    for budget in ("samples", "tokens"):
        select = SelectConfig(ratio=0.2, budget=budget, mixture={"math": 0.75, "code": 0.25})
        plan = planned(replace(mixed, select=select))
        (second,) = (work for work in plan.work if (work.stage, work.round) == (CALIBRATE, 2))
        if budget == "samples":
            assert second.samples == len(plan.pool) // 5
        else:
            sizes = plan.sizes
            whole = sum(size.response_tokens for size in sizes.values()) / 5
            expected = [
                share * whole * sizes[name].samples / sizes[name].response_tokens
                for name, share in select.mixture.items()
            ]
            assert second.samples == pytest.approx(sum(expected), abs=2)
    with pytest.raises(UserError, match="select.mixture names physics"):
        planned(replace(mixed, select=SelectConfig(mixture={"physics": 0.5})))


def test_a_baseline_trains_nothing(config: Config) -> None:
    assert not planned(replace(config, strategy="random")).work
    assert work_of(planned(replace(config, strategy="ifd"))) == [(SCORE, 1, ("base", "alone"))]


def test_samples_that_were_scored_before_are_not_counted_again(config: Config) -> None:
    context = context_of(config)
    pool = planned(config).pool
    spec = ScoreSpec("base", context.base, EncoderSpec.of(config, context.base))
    (store,) = score_stores([spec], pool, "fp32", context.storage)
    ids = [*pool.ids()][:60]
    columns = [ids, [5] * 60, [1.0] * 60, [1.0] * 60, [None] * 60, [None] * 60]
    schema = shard_schema(spec.encoding.measures)
    table = pa.table([pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema)
    # Pieces of a run that died: no scorer has folded them, and no plan does.
    for start in (0, 30):
        write_piece(store.shards[None], table.slice(start, 30))
    plan = planned(config)
    assert plan.in_storage == ["base scores of 60 samples"]
    lengths = {row["sample_id"]: row["tokens"] for row in index_of(plan)}
    there = sum(lengths[sample_id] for sample_id in ids)
    rest = sum(lengths.values()) - there
    assert {(work.models, work.samples, work.tokens) for work in plan.work[1:]} == {
        (("calibrated",), 60, there),
        (("base", "calibrated"), len(lengths) - 60, 2 * rest),
    }
