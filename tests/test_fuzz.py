"""Rows damaged in every way we could think of: `read = pool + rejects`, and no traceback."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from instructdiff_ray.config.data import DataConfig
from instructdiff_ray.config.run import Config
from instructdiff_ray.config.training import CalibrateConfig
from instructdiff_ray.models.model import Model
from instructdiff_ray.pool.chunks import reader_groups
from instructdiff_ray.pool.files import find_files, source_files
from instructdiff_ray.pool.ingest import ingest
from instructdiff_ray.pool.pool import Pool
from instructdiff_ray.progress import Progress
from instructdiff_ray.storage.artifacts import Storage
from tests.pools import rejects, samples

pytestmark = [pytest.mark.usefixtures("ray_session"), pytest.mark.timeout(3600)]
ROWS_PER_FILE = 500

# What stands in place of a value, or of the row.
VALUES: list[Any] = [
    None,
    True,
    0,
    -1.5e300,
    10**400,
    float("nan"),
    "",
    " \t\u2028",
    "\0\x01",
    "\ud800",
    "\U0001f600" * 50,
    "a" * 100_000,
    [],
    ["text", None],
    {"text": {"text": []}},
    [{"role": "user", "content": None}],
    [{"from": "gpt", "value": "first"}, {"from": "human", "value": "last"}],
    "{{instruction}} {0} %s </s> <|im_end|> \\u0000",
]


def a_row(number: int, rng: random.Random) -> dict[str, Any]:
    ask, answer = f"Say {number} in {rng.choice('abcdef')} words.", f"It is {number}, of course."
    turns = [("user", "human", ask), ("assistant", "gpt", answer)]
    return rng.choice(
        [
            {"instruction": ask, "input": "", "output": answer},
            {"instruction": ask, "input": "Now.", "response": answer},
            {"prompt": ask, "completion": answer},
            {"question": ask, "answer": answer, "domain": "math"},
            {"messages": [{"role": role, "content": text} for role, _, text in turns]},
            {"conversations": [{"from": who, "value": text} for _, who, text in turns]},
        ]
    )


def mutated(line: bytes, rng: random.Random) -> bytes:
    """One line, changed in its bytes or in its values; never blank, and without a line's end."""
    choice = rng.randrange(10)
    place = rng.randrange(len(line))
    if choice == 0:
        line = line[:place]
    elif choice == 1:
        line = line[:place] + bytes(rng.randrange(256) for _ in range(4)) + line[place + 2 :]
    elif choice == 2:
        line = line[:place] + b"\xff\xfe\x80" + line[place:]
    elif choice == 3:
        depth = rng.choice([10, 500, 5_000, 100_000])
        line = b'{"instruction": ' + b"[" * depth + b"]" * depth + b', "output": "x"}'
    elif choice == 4:
        line = line + line
    elif choice < 9:
        row = json.loads(line)
        row[rng.choice(list(row))] = rng.choice(VALUES)
        line = json.dumps(row).encode()
    else:
        line = json.dumps(rng.choice(VALUES)).encode()
    return line.replace(b"\n", b"").replace(b"\r", b"").strip() or b"\0"


def write_files(folder: Path, rows: int, seed: int) -> int:
    """Files of JSON Lines, CSV, JSON and Parquet, whole and cut off; gives the rows of those whose
    number is known: JSON Lines that were not cut off."""
    rng = random.Random(seed)
    known = 0
    for number in range(rows // ROWS_PER_FILE):
        lines = []
        for row in range(ROWS_PER_FILE):
            line = json.dumps(a_row(rng.randrange(rows) if row % 20 else 7, rng)).encode()
            lines.append(mutated(line, rng) if rng.random() < 0.6 else line)
        kind = number % 8
        data = b"\n".join(lines)
        name = folder / f"{number:04d}"
        if kind < 5:
            ending, pack = [(".jsonl", bytes), (".jsonl.gz", gzip.compress)][kind % 2]
            ending, pack = (".jsonl.bz2", bz2.compress) if kind == 4 else (ending, pack)
            name.with_suffix(ending).write_bytes(pack(data))
            known += len(lines)
        elif kind == 5:
            packed = gzip.compress(data)
            name.with_suffix(".jsonl.gz").write_bytes(packed[: rng.randrange(len(packed))])
        elif kind == 6:
            text = b"instruction,output\n" + b"\n".join(b'"a",' + line for line in lines)
            name.with_suffix(".csv").write_bytes(text)
        else:
            table = pa.table({"prompt": lines, "completion": pa.array(range(len(lines)))})
            pq.write_table(table, name.with_suffix(".parquet"))
            (folder / f"{number:04d}.json").write_bytes(b"[" + b",".join(lines[:50]) + b"]")
    (folder / "empty.jsonl").write_bytes(b"")
    (folder / "empty.parquet").write_bytes(b"")
    return known


def ingested(folder: Path, storage: Path, model: Model) -> Pool:
    config = Config(data=DataConfig(path=str(folder)), calibrate=CalibrateConfig(max_length=256))
    return ingest(
        config, source_files(config.data), model, Storage(str(storage)), Progress(io.StringIO())
    )


@pytest.mark.parametrize("rows", [2_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_every_damaged_row_is_in_the_pool_or_among_the_rejects(
    rows: int, model: Model, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    (tmp_path / "data").mkdir()
    known = write_files(tmp_path / "data", rows, seed=rows)
    pool = ingested(tmp_path / "data", tmp_path / "storage", model)
    kept, dropped = samples(pool), rejects(pool)
    counts = pool.counts
    assert counts["read"] == len(kept) + len(dropped)
    assert counts["pool"] == len(kept) == len({row["sample_id"] for row in kept})
    assert counts["rejected"] == Counter(row["reason"] for row in dropped)
    places = [(row["file"], row["line"]) for row in kept + dropped]
    whole = [
        place
        for place in places
        if place[0].endswith((".jsonl", ".bz2", ".jsonl.gz"))
        and int(Path(place[0]).name[:4]) % 8 < 5
    ]
    # Every line of the files whose lines are known, each once.
    assert len(whole) == len(set(whole)) == known
    record_property("counts", json.dumps(counts))
    print(json.dumps(counts))


@pytest.mark.parametrize("files", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_a_folder_of_many_small_files_is_read_by_few_readers(
    files: int, model: Model, tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(files):
        row = {"question": f"What is {number}?", "answer": f"It is {number}."}
        (folder / f"{number:05d}.jsonl").write_text(json.dumps(row))
    assert len(list(reader_groups(find_files([str(folder)])))) == 1
    pool = ingested(folder, tmp_path / "storage", model)
    assert pool.counts["read"] == pool.counts["pool"] == files
    kept = samples(pool)
    assert [Path(row["file"]).stem for row in kept] == [f"{n:05d}" for n in range(files)]
