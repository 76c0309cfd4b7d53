"""What one command works with: made once, and shared by all that it runs."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest

from instructdiff_ray.config.cluster import ClusterConfig
from instructdiff_ray.config.data import DataConfig
from instructdiff_ray.config.run import Config
from instructdiff_ray.config.selection import BaselineConfig, SelectConfig
from instructdiff_ray.config.training import EvaluateConfig
from instructdiff_ray.context import RunContext, prepare
from instructdiff_ray.errors import UserError
from instructdiff_ray.models import encoding
from instructdiff_ray.models.encoding import EncoderSpec
from instructdiff_ray.pool.ingest import pool_artifact
from instructdiff_ray.pool.pool import Pool
from instructdiff_ray.progress import Progress
from instructdiff_ray.scoring.spec import ScoreSpec
from instructdiff_ray.scoring.store import score_stores
from instructdiff_ray.storage.filesystem import Folder
from instructdiff_ray.training.calibrate import model_artifact

POOL = Pool(Folder("/nowhere"), "key", "digest", [], 1, False, {"pool": 0})


def test_another_seed_keeps_the_models_and_files_that_were_found(context: RunContext) -> None:
    seeded = context.with_seed(7)
    assert seeded.config.seed == 7 != context.config.seed
    # Not looked up again: a hub's branch may have moved, a folder may have changed.
    assert seeded.base is context.base and seeded.target is context.target
    assert seeded.files is context.files


def test_what_auto_stands_for_is_decided_before_any_key_is_made(context: RunContext) -> None:
    lines = io.StringIO()
    asked = replace(context.config, cluster=ClusterConfig(precision="auto"))
    config = prepare(asked, Progress(lines)).config
    precision = config.cluster.precision
    assert precision in ("fp32", "bf16")
    assert lines.getvalue().startswith(f"cluster.precision=auto is {precision}: ")
    named = replace(context.config, cluster=ClusterConfig(precision=precision))
    assert config == prepare(named, Progress(lines)).config
    assert lines.getvalue().count("\n") == 1  # what is named needs no line


def test_preparing_makes_nothing(context: RunContext) -> None:
    assert not Path(context.storage.root).exists() and not Path(context.folder.path).exists()


def test_a_mistake_in_the_strategy_is_told_before_files_and_models_are_looked_for() -> None:
    config = Config(data=DataConfig(path="/no/such"), strategy="ppl")
    with pytest.raises(UserError, match="strategy=ppl is not known"):
        prepare(config, Progress(io.StringIO()))


def test_a_mistake_in_the_arms_of_an_evaluation_is_told_first() -> None:
    def refused(config: Config, line: str) -> None:
        with pytest.raises(UserError, match=line):
            prepare(config, Progress(io.StringIO()))

    unknown = EvaluateConfig(arms=["instructdiff", "longest"])
    refused(Config(evaluate=unknown), "evaluate.arms: longest is not known; use full, or of")
    zip_arm = EvaluateConfig(arms=["random", "zip"])
    guarded = SelectConfig(guard=["mismatched"])
    refused(Config(evaluate=zip_arm, select=guarded), "evaluate.arms: strategy=zip goes by the")
    with pytest.raises(UserError, match="evaluate.arms names no strategy"):
        EvaluateConfig(arms=["full"])


def test_each_arm_has_the_models_and_the_rounds_that_it_needs(context: RunContext) -> None:
    arms = EvaluateConfig(arms=["instructdiff", "selectit_token", "random"])
    prepared = prepare(replace(context.config, evaluate=arms, rounds=2), context.progress)
    rating, drawn = prepared.with_strategy("selectit_token"), prepared.with_strategy("random")
    assert rating.config.rounds == 1 and len(rating.baseline_models.raters) == 1
    assert not drawn.baseline_models.raters and drawn.base is prepared.base
    assert prepared.with_strategy("instructdiff").config.rounds == 2
    missing = replace(context.config, evaluate=EvaluateConfig(arms=["superfiltering"]))
    missing = replace(missing, baseline=BaselineConfig(small_model="/no/such"))
    with pytest.raises(UserError, match="baseline.small_model=/no/such"):
        prepare(missing, context.progress)


def test_another_version_of_encoding_is_in_every_key(
    context: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    def keys() -> list[str]:
        config, base, storage = context.config, context.base, context.storage
        whole = EncoderSpec.of(config, base)
        (scores,) = score_stores([ScoreSpec("base", base, whole)], POOL, "fp32", storage)
        return [
            pool_artifact(config, context.files, base, storage)[0].key,
            model_artifact(config, base, ["a", "b"], storage)[0].key,
            scores.artifact.key,
            scores.shards[None].path,
        ]

    before = keys()
    monkeypatch.setattr(encoding, "VERSION", encoding.VERSION + 1)
    assert not set(keys()) & set(before)
