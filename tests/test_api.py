"""`from instructdiff_ray import select`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import ray.data

import instructdiff_ray
from instructdiff_ray import select
from instructdiff_ray.demo.pool import write_pool
from instructdiff_ray.errors import UserError


@pytest.fixture
def settings(tmp_path: Path, model_folder: str) -> list[str]:
    return [
        f"model.base={model_folder}",
        "domain=math",
        "strategy=ppl_mid",  # which trains nothing; the whole method: test_notebook.py
        "calibrate.max_length=150",
        f"storage={tmp_path / 'storage'}",
    ]


def test_a_file_and_the_same_rows_as_a_dataset_give_the_same_selection(
    ray_session: None, settings: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "pool.jsonl"
    write_pool(str(path), seed=5, size=120)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for number, row in enumerate(rows[::7]):
        row["tags"] = [number, "mixed"]  # a column of some rows, of no single type
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))

    result = select(str(path), *settings, f"run_dir={tmp_path / 'run'}")
    assert result.folder == str(tmp_path / "run")
    assert result.summary == json.loads((tmp_path / "run/summary.json").read_text())
    lines = (tmp_path / "run/selected.jsonl").read_text().splitlines()
    taken = result.selected.take_all()
    assert [{name: value for name, value in row.items() if value is not None} for row in taken] == [
        json.loads(line) for line in lines
    ]
    assert result.ranking.count() == result.summary["counts"]["pool"]
    assert Path(result.report).read_text().startswith("<!DOCTYPE html>")

    narrow = [{name: value for name, value in row.items() if name != "tags"} for row in rows]
    again = select(ray.data.from_items(narrow, override_num_blocks=2), *settings)
    assert again.summary["scoring"]["samples_scored"] == {"base": 0, "calibrated": 0}
    fates = [
        pq.read_table(f"{each.folder}/ranking.parquet", columns=["sample_id", "fate"])
        for each in (result, again)
    ]
    assert fates[0].equals(fates[1])


def test_what_lies_in_the_run_folder_is_left_alone(
    ray_session: None, settings: list[str], tmp_path: Path
) -> None:
    """A Dataset is read when it is written: from files that would be lost if they made way."""
    rows = [{"question": f"What is {n} and 1?", "answer": f"{n + 1}."} for n in range(9)]
    given = tmp_path / "run/dataset"
    ray.data.from_items(rows, override_num_blocks=1).write_parquet(str(given))
    (given / "notes.txt").write_text("mine")
    before = sorted(given.iterdir())
    files = ray.data.read_parquet([str(path) for path in given.glob("*.parquet")])
    taken = select(files, *settings, *RANDOM, run_in(tmp_path))
    assert sorted(given.iterdir()) == before
    assert taken.summary["counts"]["read"] == 9


RANDOM = ["strategy=random", "select.ratio=0.5"]


def run_in(folder: Path) -> str:
    return f"run_dir={folder / 'run'}"


def test_the_settings_of_a_dataset_are_checked_before_it_is_written(
    ray_session: None, settings: list[str], tmp_path: Path
) -> None:
    rows = ray.data.from_items([{"question": "1 + 1?", "answer": "2"}])
    for mistake in ("strategy=nope", "model.base=./nowhere"):
        with pytest.raises(UserError):
            select(rows, *settings, mistake, run_in(tmp_path))
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match="the dataset holds no row"):
        select(rows.filter(lambda row: False), *settings, run_in(tmp_path))


def test_it_works_within_a_program_of_hydra(settings: list[str], tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import hydra\nfrom instructdiff_ray import UserError, select\n"
        "@hydra.main(version_base='1.3', config_path=None)\n"
        "def main(config):\n"
        "    try:\n        select('/no/such.jsonl', 'domain=math')\n"
        "    except UserError as error:\n        print('told:', error)\n"
        "    print('state:', hydra.core.global_hydra.GlobalHydra.instance().is_initialized())\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, str(program)], cwd=tmp_path, capture_output=True, text=True
    )
    assert "told: " in done.stdout and "state: True" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("data", "more", "line"),
    [
        (5, [], "data is a int; give paths, or rows as a ray.data.Dataset"),
        ([{"question": "1 + 1?"}], [], "data is a list; give paths, or rows"),
        ("a.jsonl", ["data.path=b.jsonl"], "the data is the first argument of select"),
        ("a.jsonl", [["domain=math"]], "is no setting; give each as a text of its own"),
    ],
)
def test_what_is_no_data_and_no_setting_is_told(data: Any, more: list[Any], line: str) -> None:
    with pytest.raises(UserError) as raised:
        select(data, *more)
    assert line in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("data", "more", "line"),
    [
        ("/no/such.jsonl", [], "data.path=/no/such.jsonl does not exist"),
        ("{pool}", ["select.ratoi=0.1"], "select.ratoi is not a setting; did you mean"),
        ("{pool}", ["select.ratio=2"], "select.ratio=2.0 must be in (0, 1]"),
        ("{pool}", ["domain=physics"], "domain=physics is not known; choose code"),
    ],
)
def test_a_mistake_is_a_user_error_of_one_line(
    data: str, more: list[str], line: str, settings: list[str], tmp_path: Path
) -> None:
    pool = tmp_path / "pool.jsonl"
    write_pool(str(pool), seed=5, size=20)
    with pytest.raises(UserError) as raised:
        select(data.format(pool=pool), *settings, *more)
    assert line in str(raised.value) and "\n" not in str(raised.value)
    assert not (tmp_path / "storage").exists()


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'selekt'"):
        instructdiff_ray.selekt  # noqa: B018
