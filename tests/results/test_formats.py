"""What trainers read of a selection; those that are installed read it themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from instructdiff_ray.config.output import FORMATS, OutputConfig
from instructdiff_ray.errors import UserError
from instructdiff_ray.results.formats import open_formats
from instructdiff_ray.sample import Part
from instructdiff_ray.storage.filesystem import Folder
from tests.runs import ROWS, make_run

SYSTEM = {"role": "system", "content": "Be brief."}
# What ROWS are, in their order.
MESSAGES = [
    [
        {"role": "user", "content": "Add.\n2 and 3"},
        {"role": "assistant", "content": "5"},
    ],
    [
        {"role": "user", "content": "Why is the sky blue?"},
        {"role": "assistant", "content": 'Rayleigh scattering, "blue" most.\nSo.'},
    ],
    [
        SYSTEM,
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "Name a prime."},
        {"role": "assistant", "content": "7"},
    ],
    [
        {"role": "user", "content": "Größe?"},
        {"role": "assistant", "content": "1,80 m"},
    ],
]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def formats(tmp_path: Path) -> Path:
    return make_run(tmp_path) / "formats"


def test_messages_are_the_selection_in_its_order(formats: Path) -> None:
    assert [row["messages"] for row in json_lines(formats / "messages.jsonl")] == MESSAGES


def test_alpaca_keeps_turns_in_history_and_the_system_prompt(formats: Path) -> None:
    rows = pq.read_table(formats / "alpaca.parquet").to_pylist()
    assert rows[0] == {
        "instruction": "Add.",
        "input": "2 and 3",
        "output": "5",
        "system": "",
        "history": [],
    }
    assert rows[2] == {
        "instruction": "Name a prime.",
        "input": "",
        "output": "7",
        "system": "Be brief.",
        "history": [["Hi", "Hello."]],
    }
    assert len(rows) == len(ROWS)


def test_llama_factory_v1_has_a_loss_on_responses_alone(formats: Path) -> None:
    rows = json_lines(formats / "llamafactory_v1.jsonl")
    texts = [
        [{"role": m["role"], "content": m["content"][0]["value"]} for m in row["messages"]]
        for row in rows
    ]
    assert texts == MESSAGES
    for message in (message for row in rows for message in row["messages"]):
        assert message["loss_weight"] == float(message["role"] == "assistant")


def test_what_tells_a_trainer_of_the_messages_names_a_file_that_is_there(formats: Path) -> None:
    (entry,) = json.loads((formats / "dataset_info.json").read_text()).values()
    (dataset,) = yaml.safe_load((formats / "axolotl.yaml").read_text())["datasets"]
    assert (formats / entry["file_name"]).is_file()
    assert (formats.parent / dataset["path"]).is_file()


@pytest.mark.parametrize(
    ("names", "files"),
    [
        ([], set()),
        (["trl"], {"messages.jsonl"}),
        (["axolotl"], {"messages.jsonl", "axolotl.yaml"}),
        (["alpaca"], {"alpaca.parquet"}),
    ],
)
def test_only_what_is_asked_for_is_written_and_nothing_of_before_stays(
    names: list[str], files: set[str], tmp_path: Path
) -> None:
    sample = [Part("instruction", "Why?"), Part("response", "So.")]
    for asked in (FORMATS, names):
        with open_formats(Folder(str(tmp_path)), asked) as write_samples:
            write_samples([sample])
    assert {path.name for path in tmp_path.glob("formats/*")} == files


def test_an_unknown_format_is_the_users_error() -> None:
    with pytest.raises(UserError, match=r"output\.formats=trll is not known; use some of trl, "):
        OutputConfig(["trl", "trll"])


@pytest.mark.slow
def test_trl_trains_on_it(formats: Path, model_folder: str, tmp_path: Path) -> None:
    trl = pytest.importorskip("trl", reason="the package trl is not installed")
    datasets = pytest.importorskip("datasets", reason="the package datasets is not installed")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    tokenizer.chat_template = CHATML
    trainer = trl.SFTTrainer(
        model_folder,
        args=trl.SFTConfig(
            str(tmp_path / "out"), max_steps=3, use_cpu=True, bf16=False, report_to="none"
        ),
        train_dataset=datasets.load_dataset(str(formats.parent), "messages", split="train"),
        processing_class=tokenizer,
    )
    trained = trainer.train()
    assert trained.global_step == 3 and 0 < trained.training_loss < 20
    texts = [tokenizer.decode(ids) for ids in trainer.train_dataset["input_ids"]]
    for messages, text in zip(MESSAGES, texts, strict=True):
        assert text == tokenizer.apply_chat_template(messages, tokenize=False)


@pytest.mark.slow
def test_llama_factory_reads_it(formats: Path) -> None:
    pytest.importorskip("llamafactory", reason="the package llamafactory is not installed")
    from datasets import load_dataset
    from llamafactory.data.converter import get_dataset_converter
    from llamafactory.data.parser import get_dataset_list
    from llamafactory.hparams import DataArguments

    (attributes,) = get_dataset_list(["selected"], str(formats))
    converter = get_dataset_converter(attributes.formatting, attributes, DataArguments())
    rows = load_dataset("json", data_files=str(formats / attributes.dataset_name), split="train")
    for messages, row in zip(MESSAGES, rows, strict=True):
        sample = converter(row)
        system = messages[0]["content"] if messages[0] == SYSTEM else ""
        assert sample["_system"] == system
        turns = messages[1:] if system else messages
        assert sample["_prompt"] + sample["_response"] == turns


@pytest.mark.slow
def test_llama_factory_v1_reads_it(formats: Path) -> None:
    pytest.importorskip("llamafactory.v1", reason="llamafactory with its v1 is not installed")
    from llamafactory.v1.core.data_engine import DataEngine

    engine = DataEngine(str(formats / "llamafactory_v1.jsonl"))
    assert len(engine) == len(MESSAGES)
    for messages, row in zip(MESSAGES, engine[:], strict=True):
        contents = [message["content"][0]["value"] for message in row["messages"]]
        assert contents == [message["content"] for message in messages]


@pytest.mark.slow
def test_axolotl_reads_it(
    formats: Path, model_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("axolotl", reason="the package axolotl is not installed")
    from axolotl.prompt_strategies.chat_template import load as load_strategy
    from axolotl.utils.data.shared import load_dataset_with_config
    from axolotl.utils.dict import DictDefault
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    tokenizer.chat_template = CHATML
    (entry,) = yaml.safe_load((formats / "axolotl.yaml").read_text())["datasets"]
    monkeypatch.chdir(formats.parent)
    rows = load_dataset_with_config(DictDefault({**entry, "split": "train"}), False)
    config = DictDefault(sequence_len=512, train_on_inputs=False)
    strategy = load_strategy(tokenizer, config, ds_cfg=DictDefault(entry))
    for messages, row in zip(MESSAGES, rows, strict=True):
        tokens = strategy.tokenize_prompt(row)
        labels = [token for token in tokens["labels"] if token != -100]
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        assert tokenizer.decode(tokens["input_ids"]) == text
        learned = tokenizer.decode(labels)
        for message in messages:
            assert (message["content"] in learned) == (message["role"] == "assistant")
