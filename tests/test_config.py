"""Impossible values are refused before anything runs, by a line that names the key."""

from __future__ import annotations

import math
import platform
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instructdiff_ray.config.clean import CleanConfig
from instructdiff_ray.config.cluster import ClusterConfig, ScoreResources, TrainResources
from instructdiff_ray.config.data import DataConfig, TemplateConfig
from instructdiff_ray.config.plan import PlanConfig
from instructdiff_ray.config.precision import choose_precision, processor_instructions
from instructdiff_ray.config.run import Config
from instructdiff_ray.config.selection import SelectConfig
from instructdiff_ray.config.training import CalibrateConfig
from instructdiff_ray.errors import UserError
from instructdiff_ray.pool.sampling import floor_share
from instructdiff_ray.selection.requirements import check_strategy

NAN, INF = math.nan, math.inf
IMPOSSIBLE: list[tuple[Callable[..., Any], str, str, list[Any]]] = [
    (DataConfig, "over_long", "data.over_long", ["cut", ""]),
    (DataConfig, "limit", "data.limit", [0, -1, NAN]),
    (CleanConfig, "near_duplicates", "clean.near_duplicates", [0, 0.49, 1.01, NAN]),
    (CleanConfig, "ngram", "clean.ngram", [4, 0, -1]),
    (CleanConfig, "min_response_tokens", "clean.min_response_tokens", [0, -1]),
    (CleanConfig, "max_response_tokens", "clean.max_response_tokens", [0, -1]),
    (ClusterConfig, "patience_hours", "cluster.patience_hours", [0, -1, INF, NAN]),
    (PlanConfig, "tokens_per_second", "plan.tokens_per_second", [0, -1.0, NAN]),
    (PlanConfig, "price_per_hour", "plan.price_per_hour", [-0.01, NAN]),
    (PlanConfig, "gpus_per_machine", "plan.gpus_per_machine", [0, -8]),
    (
        DataConfig,
        "columns",
        "data.columns",
        [
            {},
            "q",
            {"instruction": 1, "response": "a"},
            {"instruction": "q"},
            {"response": "a", "input": "i"},
            {"instruction": "q", "response": "a", "messages": "m"},
            {"messages": "m", "input": "i"},
            {"instruction": "q", "output": "a"},
        ],
    ),
    (
        TemplateConfig,
        "prompt",
        "template.prompt",
        [
            "no field",
            "{{instruction}}",
            "{instruction",
            "{instruction} {other}",
            "{} {instruction}",
            "{instruction.name}",
            "{instruction[name]}",
            "{instruction:d}",
        ],
    ),
    (
        TemplateConfig,
        "prompt_with_input",
        "template.prompt_with_input",
        ["{instruction}", "{input}", "{instruction}{{input}}", "{instruction}{input"],
    ),
    (CalibrateConfig, "ratio", "calibrate.ratio", [0, -0.1, 1.01, NAN, INF]),
    (CalibrateConfig, "epochs", "calibrate.epochs", [0, -1, NAN]),
    (CalibrateConfig, "max_samples", "calibrate.max_samples", [0, -1, NAN]),
    (CalibrateConfig, "optimizer", "calibrate.optimizer", ["sgd", ""]),
    (CalibrateConfig, "global_batch_size", "calibrate.global_batch_size", [0, -4, NAN]),
    (CalibrateConfig, "repeats", "calibrate.repeats", [0, -1, NAN]),
    (CalibrateConfig, "max_length", "calibrate.max_length", [1, 0, -5, NAN]),
    (CalibrateConfig, "learning_rate", "calibrate.learning_rate", [0, -1e-5, NAN, INF]),
    (CalibrateConfig, "weight_decay", "calibrate.weight_decay", [-0.01, NAN, INF]),
    (CalibrateConfig, "warmup_steps_ratio", "calibrate.warmup_steps_ratio", [-0.1, 1, NAN]),
    (CalibrateConfig, "max_grad_norm", "calibrate.max_grad_norm", [0, -1, NAN, INF]),
    (SelectConfig, "ratio", "select.ratio", [0, -0.1, 1.5, NAN]),
    (SelectConfig, "reject_ratio", "select.reject_ratio", [-0.1, 0.5, 1, NAN, INF]),
    (
        SelectConfig,
        "mixture",
        "select.mixture",
        [
            {},
            0.3,
            ["a"],
            {"a": "x"},
            {"a": None},
            {"a": True},
            {"a": 0},
            {"a": -0.1},
            {"a": 1.1},
            {"a": NAN},
            {"a": 0.6, "b": 0.5},
        ],
    ),
    (TrainResources, "workers", "cluster.train.workers", [0, -1, NAN]),
    (TrainResources, "gpus_per_worker", "cluster.train.gpus_per_worker", [0.5, 2, -1, NAN]),
    (TrainResources, "tokens_per_device", "cluster.train.tokens_per_device", [0, -1, NAN]),
    (TrainResources, "fsdp", "cluster.train.fsdp", [True]),
    (ScoreResources, "min_actors", "cluster.score.min_actors", [0, -1, 2, NAN]),
    (ScoreResources, "max_actors", "cluster.score.max_actors", [0, -1, NAN]),
    (ScoreResources, "gpus_per_actor", "cluster.score.gpus_per_actor", [-1, 1.5, NAN, INF]),
    (ScoreResources, "models_per_actor", "cluster.score.models_per_actor", [0, 3, NAN]),
    (ScoreResources, "tokens_per_batch", "cluster.score.tokens_per_batch", [0, -1, NAN]),
    (ClusterConfig, "precision", "cluster.precision", ["fp16", "", "FP32"]),
    (Config, "rounds", "rounds", [0, -1, NAN]),
    (Config, "domain", "domain", ["", "  "]),
]


@pytest.mark.parametrize(
    ("build", "name", "key", "value"),
    [
        pytest.param(build, name, key, value, id=f"{key}={value}")
        for build, name, key, values in IMPOSSIBLE
        for value in values
    ],
)
def test_an_impossible_value_is_refused_by_a_line_that_names_its_key(
    build: Callable[..., Any], name: str, key: str, value: Any
) -> None:
    with pytest.raises(UserError) as refusal:
        build(**{name: value})
    assert key in str(refusal.value)
    assert "\n" not in str(refusal.value)


GPUS = {
    "train": TrainResources(gpus_per_worker=1),
    "score": ScoreResources(gpus_per_actor=None),
}


@pytest.mark.parametrize(
    ("resources", "address", "instructions", "precision"),
    [
        (GPUS, None, set(), "bf16"),
        (GPUS, "10.0.0.1:6379", set(), "bf16"),
        ({}, None, {"avx2", "avx512f"}, "fp32"),
        ({}, None, {"avx512f", "avx512_bf16"}, "bf16"),
        ({}, None, {"amx_bf16"}, "bf16"),
        ({}, "10.0.0.1:6379", {"amx_bf16"}, "fp32"),  # the machines there may have none
        ({"train": GPUS["train"]}, None, set(), "fp32"),  # for scoring is on processors
        ({"score": GPUS["score"]}, "10.0.0.1:6379", {"amx_bf16"}, "fp32"),
    ],
)
@pytest.mark.parametrize("by_variable", [False, True])
def test_precision_is_bf16_where_all_of_the_work_is_faster_in_it(
    resources: dict[str, Any],
    address: str | None,
    instructions: set[str],
    precision: str,
    by_variable: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if by_variable and address:
        monkeypatch.setenv("RAY_ADDRESS", address)
        address = None
    cluster = ClusterConfig(precision="auto", address=address, **resources)
    assert choose_precision(cluster, instructions)[0] == precision


@pytest.mark.skipif(
    (platform.system(), platform.machine()) != ("Linux", "x86_64"), reason="none are listed"
)
def test_the_processor_is_known_by_its_instructions() -> None:
    assert "sse2" in processor_instructions()  # every x86-64 has it


def test_the_defaults_and_the_values_at_the_limits_are_allowed() -> None:
    Config()
    DataConfig(limit=1, format="parquet", over_long="truncate")
    DataConfig(columns={"instruction": "q", "response": "a"})
    DataConfig(columns={"instruction": "q", "response": "a", "input": "context"})
    DataConfig(columns={"messages": "chat"})
    CalibrateConfig(ratio=1, max_length=2, weight_decay=0, warmup_steps_ratio=0)
    SelectConfig(ratio=1, reject_ratio=0)
    SelectConfig(mixture={"a": 0.1, "b": 0.2, "c": 0.7})  # sums to 1 on paper, not in floats
    SelectConfig(mixture={"a": 0.334, "b": 0.334, "c": 0.333})
    numbered = DataConfig(path={1: "a", 2: "b"})  # as Hydra reads such names
    Config(data=numbered, select=SelectConfig(mixture={1: 0.5}))
    Config(select=SelectConfig(mixture={"a": 0.5}))  # from Python, data is named behind settings
    TrainResources(workers=2, fsdp=True, gpus_per_worker=1)
    ScoreResources(min_actors=1, max_actors=4, gpus_per_actor=0.25)
    ScoreResources(gpus_per_actor=4, models_per_actor=1)
    ScoreResources(gpus_per_actor=None)
    TemplateConfig(prompt="{{json}} {instruction}", prompt_with_input="{input}{instruction}")
    TemplateConfig(prompt="a chat template needs none", chat=True)


def test_the_share_selected_fits_what_the_shares_rejected_leave() -> None:
    # 1 − 2 · 0.45 is 0.09999999999999998 in floats; on paper it is 0.1.
    SelectConfig(ratio=0.1, reject_ratio=0.45).check_room()
    SelectConfig(ratio=0.4, reject_ratio=0.3).check_room()
    too_much = SelectConfig(ratio=0.11, reject_ratio=0.45)
    with pytest.raises(UserError, match=r"select\.ratio=0\.11 .*select\.reject_ratio=0\.45.*0\.1 "):
        check_strategy(Config(select=too_much))
    check_strategy(Config(select=too_much, strategy="random"))  # has no filter


COLUMN = DataConfig(domain_column="domain")


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (
            {"data": DataConfig(path="a")},
            r"select\.mixture needs a pool of several domains: .*data\.domain_column",
        ),
        ({"data": DataConfig(path={"code": "a", "law": "b"})}, "names math; .* are code, law"),
        (
            {"data": COLUMN, "domains": {"math": {"select": {"budget": "tokens"}}}},
            r"domains\.math\.select\.budget: .* set select\.budget",
        ),
        (
            {"data": COLUMN, "domains": {"math": {"select": {"max_samples": 9}}}},
            r"domains\.math: select\.mixture says how much .* leave out select\.min_samples and",
        ),
        (
            {"data": COLUMN, "domains": {"math": {"select": {"mixture": {"code": 1.0}}}}},
            r"select\.mixture is one for all domains",
        ),
    ],
)
def test_what_contradicts_a_mixture_is_refused(settings: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError, match=line):
        Config(select=SelectConfig(mixture={"math": 0.3}), **settings)


def test_under_a_mixture_no_domain_has_a_ratio_or_room_of_its_own() -> None:
    domains = {"math": {"select": {"ratio": 0.7, "reject_ratio": 0.2}}}
    mixed = Config(
        data=COLUMN, select=SelectConfig(0.5, 0.3, mixture={"math": 0.3}), domains=domains
    )
    own = mixed.select_of("math")
    assert (own.ratio, own.reject_ratio, own.mixture) == (0.5, 0.2, {"math": 0.3})
    check_strategy(mixed)  # 0.5 has room in math, though none elsewhere
    with pytest.raises(UserError, match=r"select\.ratio=0\.7 .*reject_ratio=0\.2 leaves \(0\.6"):
        check_strategy(replace(mixed, select=replace(mixed.select, ratio=0.7)))


@pytest.mark.parametrize(
    "select", [{"exclude_warmup": True}, {"filter": "ppl"}, {"entropy": "middle"}]
)
def test_what_several_repeats_can_not_do_is_refused(select: dict[str, Any]) -> None:
    ablation, several = SelectConfig(**select), CalibrateConfig(repeats=2)
    with pytest.raises(UserError, match="calibrate.repeats"):
        check_strategy(Config(select=ablation, calibrate=several))
    check_strategy(Config(select=ablation))
    check_strategy(Config(calibrate=several))
    own = {"math": {"select": select}}
    if "filter" not in select:
        with pytest.raises(UserError, match="calibrate.repeats"):
            check_strategy(Config(calibrate=several, domains=own))


@settings(deadline=None, max_examples=300, derandomize=True)
@given(st.integers(1, 1000), st.integers(0, 499), st.integers(1, 10_000))
def test_allowed_shares_never_ask_for_more_samples_than_there_are(
    selected: int, rejected: int, count: int
) -> None:
    beta, gamma = selected / 1000, rejected / 1000
    exact = Fraction(selected, 1000) + 2 * Fraction(rejected, 1000) <= 1
    try:
        check_strategy(Config(select=SelectConfig(beta, gamma)))
    except UserError:
        assert not exact
    else:
        assert exact
        assert floor_share(beta, count) + 2 * floor_share(gamma, count) <= count


def test_a_batch_that_the_workers_cannot_share_evenly_is_refused() -> None:
    three = ClusterConfig(train=TrainResources(workers=3))
    with pytest.raises(UserError, match=r"calibrate\.global_batch_size=64 .*workers=3"):
        Config(cluster=three)
    assert Config(cluster=three, calibrate=CalibrateConfig(global_batch_size=66)).cluster is three


def test_one_path_or_several_are_read_as_a_list() -> None:
    assert DataConfig(path="a.jsonl").paths == ["a.jsonl"]
    assert DataConfig(path=["a.jsonl", "b"]).paths == ["a.jsonl", "b"]
    assert DataConfig().paths == []
