"""A difference of keys is told in the words of the command line."""

from __future__ import annotations

import shlex
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import DatasetCard

from instructdiff_ray.commands.settings import config_of
from instructdiff_ray.config.clean import CleanConfig
from instructdiff_ray.config.data import DataConfig, TemplateConfig
from instructdiff_ray.config.run import Config
from instructdiff_ray.config.selection import BaselineConfig, SelectConfig
from instructdiff_ray.config.training import CalibrateConfig
from instructdiff_ray.sharing.card import render_card, settings_line
from instructdiff_ray.sharing.settings import (
    draw_differences,
    input_differences,
    listed,
    run_settings,
    selection_differences,
    shown,
)
from tests.sharing.test_publication import INPUTS, RENDERING, TEMPLATE, publication

MODELS = ("Qwen/Qwen2.5-7B at commit abc", "tiny (a local folder; content 12)")


def changed(path: str, value: Any) -> dict[str, Any]:
    """INPUTS with another value at this path."""

    def put(where: dict[str, Any], names: list[str]) -> dict[str, Any]:
        first, *rest = names
        return {**where, first: put(where[first], rest) if rest else value}

    return put(INPUTS, path.split("."))


@pytest.mark.parametrize(
    ("path", "value", "line"),
    [
        ("base", "x", f"model.base is {MODELS[0]} there and {MODELS[1]} here"),
        ("rendering.tokenizer", "x", f"model.base is {MODELS[0]} there and {MODELS[1]} here"),
        ("rendering.max_length", 99, "calibrate.max_length is 512 there and 99 here"),
        ("rendering.truncate", True, "data.over_long is reject there and truncate here"),
        ("rendering.template.prompt", "x", "template.prompt is {instruction} there and x here"),
        (
            "rendering.template",
            {**TEMPLATE, "name": "chat", "chat": True},
            "template is alpaca there and chat here",
        ),
        ("hyper_parameters.epochs", 1, "calibrate.epochs is 3 there and 1 here"),
        ("hyper_parameters.lora_rank", 8, "calibrate.lora_rank is nothing there and 8 here"),
        ("precision", "fp32", "cluster.precision is bf16 there and fp32 here"),
        ("version", 3, "the version of scoring or training is 2 there and 3 here"),
    ],
)
def test_what_differs_is_named_with_both_values(path: str, value: Any, line: str) -> None:
    found = input_differences(INPUTS, changed(path, value), MODELS, "model.base")
    assert listed(found) == line


def test_what_a_stranger_wrote_is_a_short_line_without_control_characters() -> None:
    assert shown("\x1b[2J\nerror: none") == "\\x1b[2J\\nerror: none"
    assert shown("a" * 99) == f"{'a' * 60}…" and shown(None) == "nothing"
    (found,) = input_differences({"\x1b[2J\n": 1}, {}, MODELS, "model.base")
    assert str(found) == "\\x1b[2J\\n is 1 there and nothing here"


def test_a_model_that_differs_is_said_once() -> None:
    here = {**INPUTS, "base": "x", "rendering": {**RENDERING, "tokenizer": "x"}}
    assert len(input_differences(INPUTS, here, MODELS, "model.base")) == 1
    assert input_differences(INPUTS, INPUTS, MODELS, "model.base") == []


def test_what_draws_and_selects_other_samples_is_named() -> None:
    config = Config(domains={"law": {"calibrate": {"ratio": 0.3}, "select": {"ratio": 0.2}}})
    there = run_settings(asdict(config))
    assert not draw_differences(there, config) and not selection_differences(there, config)
    here = replace(
        config,
        seed=3,
        calibrate=CalibrateConfig(ratio=0.2, epochs=9),
        select=SelectConfig(ratio=0.3, guard="none"),
        domains={"law": {"calibrate": {"ratio": 0.4}, "select": {"ratio": 0.2}}},
    )
    assert listed(draw_differences(there, here)) == (
        "seed is 0 there and 3 here; domains.law.calibrate.ratio is 0.3 there and 0.4 here;"
        " calibrate.ratio is 0.1 there and 0.2 here"
    )
    names = [difference.setting for difference in selection_differences(there, here)]
    assert names == ["domains.law.calibrate.ratio", "select.ratio", "select.guard"]


AWKWARD = [
    "train[:10%]",
    "it's (new)",
    "Ünï code",
    "a,b",
    "1e3",
    "null",
    "x: y",
    "",
    'a\\"b\\\\',
]
OTHERS = Config(
    data=DataConfig(
        columns={"instruction": "q, a", "response": "r"},
        domain_column="topic, if any",
        over_long="truncate",
    ),
    clean=CleanConfig(near_duplicates=0.8, benchmarks=["hf://datasets/openai/gsm8k@abc"]),
    template=TemplateConfig(
        "it's mine", 'Say "{instruction}"\n\n# {{x}}:\n', "{instruction}\n{input}"
    ),
    calibrate=CalibrateConfig(epochs=1, lora_rank=8),
    select=SelectConfig(mixture={"math": 0.3, "role play": 0.2}, guard=["typical", "complete"]),
    domains={"law, and order": {"calibrate": {"ratio": 0.5}}, "math": {"select": {"ratio": 0.2}}},
    baseline=BaselineConfig(small_model="openai/gpt", rating_models=["a/b", "c-d/e"]),
    seed=7,
)


@pytest.mark.parametrize("config", [Config(domain="math"), OTHERS], ids=["usual", "others"])
@pytest.mark.parametrize("split", AWKWARD)
def test_the_card_s_command_gives_the_settings_that_are_published(
    config: Config, split: str
) -> None:
    shared = publication(**run_settings(asdict(config)))
    shared = replace(shared, pool={**shared.pool, "split": split, "limit": 5})
    command = shlex.split(" ".join(settings_line(shared)))
    read = config_of([*command, "storage=/tmp"])
    assert run_settings(asdict(read)) == shared.settings
    given = {name: getattr(read.data, name) for name in ("path", "subset", "split", "limit")}
    assert given == {name: shared.pool[name] for name in given}
    model = (read.model.base, read.model.revision)
    assert model == ("Qwen/Qwen2.5-7B", "d" * 40) and read.cluster.precision == "bf16"


def test_no_path_of_a_machine_is_published(tmp_path: Path) -> None:
    own = str(tmp_path)
    config = Config(
        clean=CleanConfig(benchmarks=[f"{own}/gsm8k.jsonl", "hf://datasets/openai/gsm8k@abc"]),
        baseline=BaselineConfig(small_model=own, rating_models=["~/models/a", "org/b"]),
    )
    settings = run_settings(asdict(config))
    assert own not in str(settings) and "models/a" not in str(settings)
    line = " ".join(settings_line(publication(**settings)))
    assert "baseline.small_model=… " in line and "org/b" in line and "openai/gsm8k@abc" in line


def test_the_card_names_each_folder_and_no_path_of_a_machine() -> None:
    shared = publication()
    card = DatasetCard(render_card(shared, "me/scores"))
    files = {config["config_name"]: config["data_files"] for config in card.data.configs}
    assert files == {each.name: f"scores/{each.key}/*.parquet" for each in shared.scores}
    assert "Qwen/Qwen2.5-7B at commit" in card.text and "calibrated from it on 3" in card.text
    local = replace(
        publication(path=None), base_model={"name": "tiny", "commit": None, "identity": "b" * 16}
    )
    text = DatasetCard(render_card(local, "me/scores")).text
    assert "data.path=…" in text and "model.base=…" in text and "your own copy" in text
