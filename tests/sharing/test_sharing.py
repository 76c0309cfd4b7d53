"""Scores of one storage are pushed, pulled into another, and selected by: there and back over HTTP,
with real models."""

from __future__ import annotations

import hashlib
import io
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import DatasetCard, constants

from instructdiff_ray.commands.scores import main
from instructdiff_ray.demo.pool import write_pool
from instructdiff_ray.storage.cleanup import find_leftovers
from instructdiff_ray.storage.filesystem import Folder
from tests import hub as serving_hub
from tests import receiving_hub
from tests.test_jobs import run_job

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_session")]
NAME = "me/scores"
Job = Callable[..., tuple[int, str, str]]


@pytest.fixture
def pool_file(tmp_path: Path) -> Path:
    write_pool(str(tmp_path / "pool.jsonl"), seed=5, size=120)
    return tmp_path / "pool.jsonl"


@pytest.fixture
def settings(pool_file: Path, model_folder: str) -> list[str]:
    return [
        f"data.path={pool_file}",
        f"model.base={model_folder}",
        "calibrate.epochs=1",
        "calibrate.global_batch_size=4",
        "calibrate.max_length=150",
        "select.guard=[typical,mismatched]",
        "rounds=2",
    ]


@pytest.fixture
def job(
    settings: list[str], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Job:
    def run(name: str, storage: Path, *arguments: str) -> tuple[int, str, str]:
        at = [f"storage={storage}", f"run_dir={storage}/run"]
        named = {argument.split("=")[0] for argument in arguments}
        others = [each for each in [*settings, *at] if each.split("=")[0] not in named]
        return run_job(name, [*arguments, *others], capfd, monkeypatch)

    return run


def push(run: Path, *options: str) -> tuple[str, dict[str, bytes]]:
    """What it prints, and the files that the Hub has received."""
    with receiving_hub.serving() as hub, pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", hub.endpoint)
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setenv("HF_TOKEN", receiving_hub.TOKEN)
        patch.setattr(sys, "stdout", printed := io.StringIO())
        main(["push", str(run), NAME, *options])
        return printed.getvalue(), hub.files.get(NAME, {})


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[serving_hub.Hub]:
    with serving_hub.serving(str(tmp_path / "home")) as server:
        yield server


def tampered(files: dict[str, bytes], name: str, change: Callable[[pa.Table], pa.Table]) -> Any:
    """The files, one of them changed, and its digest and size put right."""
    out = io.BytesIO()
    pq.write_table(change(pq.read_table(io.BytesIO(files[name]))), out)
    manifest = json.loads(files["scores.json"])
    for scores in manifest["scores"]:
        for file in scores["files"]:
            if file["name"] == name:
                file["sha256"] = hashlib.sha256(out.getvalue()).hexdigest()
                file["size"] = len(out.getvalue())
    return files | {name: out.getvalue(), "scores.json": json.dumps(manifest).encode()}


def with_nll(add: float) -> Callable[[pa.Table], pa.Table]:
    return lambda table: table.set_column(2, "nll", pa.array(table["nll"].to_numpy() + add))


def test_a_second_storage_selects_the_same_without_a_model(
    hub: serving_hub.Hub, job: Job, tmp_path: Path, pool_file: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert job("run", first)[0] == 0
    shown, received = push(first / "run")
    assert "give --yes" in shown and not received and "private" in shown
    _, files = push(first / "run", "--yes")
    manifest = json.loads(files["scores.json"])
    names = [(scores["name"], scores["round"]) for scores in manifest["scores"]]
    assert sorted(names) == [("alone", 1), ("base", 1), ("calibrated", 1), ("calibrated", 2)]
    texts = {*re.findall(r'"([^"\\]{25,})"', pool_file.read_text())}
    assert len(texts) > 20
    for name in ("scores.json", "README.md"):
        content = files[name].decode()
        assert str(tmp_path) not in content and not [text for text in texts if text in content]
    for file in manifest["scores"][0]["files"]:
        table = pq.read_table(io.BytesIO(files[file["name"]]))
        assert table.column_names == ["sample_id", "response_tokens", "nll", "entropy", "reason"]
        assert table.num_rows == file["rows"]
    card = DatasetCard(files["README.md"].decode())
    assert [config["config_name"] for config in card.data.configs][0] == "base"
    assert f"pull {NAME}" in card.text and "calibrate.epochs=1" in card.text

    hub.repo(NAME, files)
    commit = hub.repos[NAME].refs["main"]
    status, out, err = job("scores", second, "pull", NAME, "--recompute", "5")
    assert (status, err) == (0, ""), err
    assert "base scores: 5 samples were scored here too, and agree" in out
    assert "calibrated scores: not recomputed" in out
    status, out, err = job("plan", second, "rounds=1")
    assert (status, err) == (0, "") and "work        none" in out, out
    status, out, err = job("run", second)
    assert (status, err) == (0, ""), err
    summary = json.loads((second / "run/summary.json").read_text())
    assert set(summary["scoring"]["samples_scored"].values()) == {0}
    assert "calibrate" not in summary["seconds"]
    assert not list(second.glob("models/*/manifest.json"))
    for name in ("ranking.parquet", "selected.jsonl"):
        assert (first / "run" / name).read_bytes() == (second / "run" / name).read_bytes()
    origins = {(o["scores"], o["repository"], o["commit"]) for o in summary["scores_from"]}
    assert origins == {(name, NAME, commit) for name in ("base", "calibrated", "alone")}
    assert {o["samples"] for o in summary["scores_from"]} == {summary["counts"]["pool"]}
    page = (second / "run/report/index.html").read_text()
    assert f"{NAME}@{commit}" in page and "its weights are not here to read" in page
    assert commit in (second / "run/README.md").read_text()
    assert not find_leftovers(Folder(str(second)), 0)


def test_a_score_that_was_tampered_with_is_refused_and_nothing_is_written(
    hub: serving_hub.Hub, job: Job, tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert job("run", first, "rounds=1")[0] == 0
    _, files = push(first / "run", "--yes")
    scores = {each["name"]: each for each in json.loads(files["scores.json"])["scores"]}
    name = scores["base"]["files"][0]["name"]
    repo = hub.repo(NAME, files)

    def refused(*options: str) -> str:
        status, _, err = job("scores", second, "pull", NAME, "rounds=1", *options)
        assert status == 1 and err.startswith("error: ") and err.count("\n") == 1, err
        assert not list(second.glob("pieces/*/*")) and not list(second.glob("models/*/*"))
        assert not list(second.glob("recomputed/*"))
        return err

    repo.push(files | {name: files[name][:-1] + b"!"})
    assert f"{name} has another digest" in refused()
    repo.push(tampered(files, name, with_nll(-100)))
    assert f"{name}: sample " in (err := refused()) and "nll that can't be (-" in err
    repo.push(tampered(files, name, with_nll(0.01)))
    assert "are not those of this model: nll is" in refused("--recompute", "3")
    repo.push(files)
    assert "calibrate.epochs is 1 there and 2 here" in refused("calibrate.epochs=2")
    assert "cluster.precision is fp32 there and bf16 here" in refused("cluster.precision=bf16")
    assert "template is alpaca there and direct here" in refused("template=direct")
    assert "seed is 0 there and 1 here" in refused("seed=1")
    line = refused("data.limit=100")
    assert re.search(r"the pool was another one there, of \d+ samples, and here of \d+;", line)
