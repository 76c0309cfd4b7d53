"""The selection in the forms that trainers read, beside its untouched rows.

All are in one folder, so that a trainer is pointed at one path; docs/user-guide.md says which.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import pyarrow as pa
import yaml

from instructdiff_ray.config.output import ALPACA, AXOLOTL, LLAMA_FACTORY, TRL
from instructdiff_ray.models.template import chat_messages
from instructdiff_ray.sample import Part
from instructdiff_ray.storage.filesystem import Folder

FORMATS_FOLDER = "formats"
MESSAGES_FILE, ALPACA_FILE = "messages.jsonl", "alpaca.parquet"
# Of LLaMA-Factory: what its v0 looks for in a `dataset_dir`, and a `train_dataset` of its v1.
DATASET_INFO, V1_FILE = "dataset_info.json", "llamafactory_v1.jsonl"
DATASET_NAME = "selected"
AXOLOTL_FILE = "axolotl.yaml"
READ_MESSAGES = {TRL, LLAMA_FACTORY, AXOLOTL}
# Parquet, for in JSON Lines a reader guesses the type of `history` from rows that have none.
ALPACA_ROWS = pa.schema(
    [
        ("instruction", pa.string()),
        ("input", pa.string()),
        ("output", pa.string()),
        ("system", pa.string()),
        ("history", pa.list_(pa.list_(pa.string()))),
    ]
)
LLAMA_FACTORY_ENTRY = {
    "file_name": MESSAGES_FILE,
    "formatting": "sharegpt",
    "columns": {"messages": "messages"},
    "tags": {
        "role_tag": "role",
        "content_tag": "content",
        "user_tag": "user",
        "assistant_tag": "assistant",
        "system_tag": "system",
    },
}
AXOLOTL_DATASETS = [
    {
        "path": f"{FORMATS_FOLDER}/{MESSAGES_FILE}",
        "ds_type": "json",
        "type": "chat_template",
        "field_messages": "messages",
        "message_property_mappings": {"role": "role", "content": "content"},
        "roles_to_train": ["assistant"],
    }
]
AXOLOTL_HEAD = """\
# For your axolotl configuration. The path starts where axolotl is started: start it in the folder
# of the run, or write the whole path.
"""

WriteSamples = Callable[[Sequence[Sequence[Part]]], None]


@contextmanager
def open_formats(run_folder: Folder, names: Sequence[str]) -> Iterator[WriteSamples]:
    """Write the samples that are handed over, in their order, in each of the formats.

    Of an earlier run nothing stays, whatever the names. Not atomic: finish with a summary.
    """
    run_folder.delete(FORMATS_FOLDER)
    folder = run_folder.sub(FORMATS_FOLDER)
    with ExitStack() as files:
        writers: list[WriteSamples] = []
        if READ_MESSAGES & {*names}:
            stream = files.enter_context(folder.open_output(MESSAGES_FILE))
            writers.append(_json_lines(stream, messages_row))
        if LLAMA_FACTORY in names:
            folder.write_json(DATASET_INFO, {DATASET_NAME: LLAMA_FACTORY_ENTRY})
            stream = files.enter_context(folder.open_output(V1_FILE))
            writers.append(_json_lines(stream, weighted_messages_row))
        if AXOLOTL in names:
            text = AXOLOTL_HEAD + yaml.safe_dump({"datasets": AXOLOTL_DATASETS}, sort_keys=False)
            folder.write_bytes(AXOLOTL_FILE, text.encode())
        if ALPACA in names:
            write = files.enter_context(folder.open_table(ALPACA_FILE, ALPACA_ROWS))
            writers.append(_alpaca_rows(write))

        def write_all(samples: Sequence[Sequence[Part]]) -> None:
            for write_samples in writers:
                write_samples(samples)

        yield write_all


def _json_lines(stream: Any, row_of: Callable[[Sequence[Part]], Mapping[str, Any]]) -> WriteSamples:
    def write(samples: Sequence[Sequence[Part]]) -> None:
        for parts in samples:
            stream.write(json.dumps(row_of(parts), ensure_ascii=False).encode() + b"\n")

    return write


def _alpaca_rows(write_table: Callable[[pa.Table], None]) -> WriteSamples:
    def write(samples: Sequence[Sequence[Part]]) -> None:
        write_table(pa.Table.from_pylist([alpaca_row(parts) for parts in samples], ALPACA_ROWS))

    return write


def messages_row(parts: Sequence[Part]) -> dict[str, Any]:
    """A sample as chat messages."""
    return {"messages": chat_messages(parts)}


def weighted_messages_row(parts: Sequence[Part]) -> dict[str, Any]:
    """The same as LLaMA-Factory's v1 keeps it: contents are lists, and responses alone have a
    loss."""
    return {
        "messages": [
            {
                "role": message["role"],
                "content": [{"type": "text", "value": message["content"]}],
                "loss_weight": float(message["role"] == "assistant"),
            }
            for message in chat_messages(parts)
        ]
    }


def alpaca_row(parts: Sequence[Part]) -> dict[str, Any]:
    """A sample in Alpaca's columns: its last turn, the turns before it in `history`, as pairs of
    prompt and response, and its system prompt in `system`."""
    last = max(place for place, part in enumerate(parts[:-1]) if part.kind == "instruction")
    texts = {part.kind: part.text for part in parts[last:]}
    earlier = chat_messages(parts[:last])
    turns = [message["content"] for message in earlier if message["role"] != "system"]
    return {
        "instruction": texts["instruction"],
        "input": texts.get("input", ""),
        "output": texts["response"],
        "system": "".join(part.text for part in parts if part.kind == "system"),
        "history": [[turns[i], turns[i + 1]] for i in range(0, len(turns), 2)],
    }
