"""`from instructdiff_ray import select`."""

from __future__ import annotations

import json
from pathlib import Path

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
