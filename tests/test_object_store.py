"""The method with pool, storage and outputs in an object store, one that fails now and then."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from instructdiff_ray.config.data import DataConfig, ModelConfig
from instructdiff_ray.config.run import Config
from instructdiff_ray.config.training import CalibrateConfig
from instructdiff_ray.demo.pool import write_pool
from instructdiff_ray.models.model import Model
from instructdiff_ray.storage.filesystem import Folder
from tests.faults import Gate, started
from tests.s3 import Server
from tests.test_pipeline import run_method

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.timeout(1800)
ROWS = 1200


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Gate:
    return Gate(tmp_path_factory.mktemp("gate") / "gate")


@pytest.fixture(scope="module")
def settings(s3: Server, model: Model, gate: Gate, tmp_path_factory) -> list[str]:  # type: ignore[no-untyped-def]
    folder = tmp_path_factory.mktemp("object-store")
    write_pool(str(folder / "pool.jsonl"), seed=9, size=ROWS)
    Folder(s3.uri).write_bytes("data/pool.jsonl", (folder / "pool.jsonl").read_bytes())
    return [
        f"data.path={s3.uri}/data/pool.jsonl",
        f"model.base={gate.model(model, folder / 'model').path}",
        "model.trust_remote_code=true",
        "calibrate.epochs=1",
        "calibrate.max_length=256",
    ]


def command(settings: list[str], root: str, *more: str, run: str = "run") -> list[str]:
    places = [f"storage={root}/storage", f"run_dir={root}/{run}"]
    return [sys.executable, str(ROOT / "jobs/run.py"), *more, *settings, *places]


def finish(*arguments: str) -> str:
    job = subprocess.run(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=1500
    )
    assert job.returncode == 0, job.stdout
    return job.stdout


@pytest.fixture(scope="module")
def on_disk(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run on a local disk."""
    folder = tmp_path_factory.mktemp("on-disk")
    finish(*command(settings, str(folder)))
    return folder


@pytest.fixture(scope="module")
def in_store(settings: list[str], s3: Server) -> str:
    root = f"{s3.uri}/quiet"
    finish(*command(settings, root))
    return root


def selection(root: str, run: str = "run") -> bytes:
    data = Folder(f"{root}/{run}").read_bytes("selected.jsonl")
    assert data
    return data


def summary(root: str, run: str = "run") -> dict:
    return json.loads(Folder(f"{root}/{run}").read_bytes("summary.json") or b"")


def test_the_method_runs_with_all_that_it_reads_and_writes_in_a_store(
    s3: Server, ray_session: None, model_folder: str, tmp_path: Path
) -> None:
    write_pool(str(tmp_path / "pool.jsonl"), seed=9, size=300)
    root = f"{s3.uri}/{tmp_path.name}"
    Folder(root).write_bytes("pool.jsonl", (tmp_path / "pool.jsonl").read_bytes())
    config = Config(
        data=DataConfig(path=f"{root}/pool.jsonl"),
        model=ModelConfig(base=model_folder),
        calibrate=CalibrateConfig(epochs=1, max_length=256),
        storage=f"{root}/storage",
        run_dir=f"{root}/run",
    )
    scored = run_method(config).summary["scoring"]["samples_scored"]
    counts = summary(root)["counts"]
    assert set(scored.values()) == {counts["pool"]}
    assert len(selection(root).splitlines()) == counts["selected"] > 20
    again = run_method(replace(config, run_dir=f"{root}/again")).summary
    assert set(again["scoring"]["samples_scored"].values()) == {0}
    assert selection(root, "again") == selection(root)


@pytest.mark.slow
def test_the_whole_method_selects_as_on_a_disk(on_disk: Path, in_store: str) -> None:
    assert selection(in_store) == selection(str(on_disk))
    files = {name.split("/")[0] for name in Folder(f"{in_store}/run").sizes()}
    assert files >= {"selected.jsonl", "ranking.parquet", "rejects.jsonl", "config.yaml", "report"}
    assert summary(in_store)["counts"] == summary(str(on_disk))["counts"]


@pytest.mark.slow
def test_a_sweep_scores_nothing_again(settings: list[str], in_store: str) -> None:
    sweep = ["-m", "select.ratio=0.05,0.1,0.2"]
    finish(*command(settings, in_store, *sweep, run="sweep"))
    counts = [summary(in_store, f"sweep/{n}")["counts"]["selected"] for n in range(3)]
    assert counts == sorted(set(counts))
    assert selection(in_store, "sweep/1") == selection(in_store)
    for n in range(3):
        scored = summary(in_store, f"sweep/{n}")["scoring"]["samples_scored"]
        assert set(scored.values()) == {0}


@pytest.mark.slow
def test_where_a_tenth_of_the_requests_fail_or_are_late_it_selects_the_same(
    settings: list[str], s3: Server, on_disk: Path
) -> None:
    root, s3.trouble = f"{s3.uri}/troubled", 0.1
    try:
        finish(*command(settings, root))
    finally:
        s3.trouble = 0.0
    assert selection(root) == selection(str(on_disk))


@pytest.mark.slow
def test_of_two_runs_at_once_each_thing_is_made_by_one_and_if_it_is_killed_by_the_other(
    settings: list[str], s3: Server, gate: Gate, on_disk: Path, tmp_path: Path
) -> None:
    root, logs = f"{s3.uri}/two", [tmp_path / "first", tmp_path / "second"]
    gate.shut(after=0)  # the first training step waits
    with started(command(settings, root, run="first"), logs[0]) as first:
        assert gate.arrival(lambda: first.poll() is not None), logs[0].read_text()
        with started(command(settings, root, run="second"), logs[1]) as second:
            while "waiting for it" not in logs[1].read_text():
                assert second.poll() is None, logs[1].read_text()
            first.kill()
            gate.open()
            assert second.wait() == 0, logs[1].read_text()
    assert selection(root, "second") == selection(str(on_disk))
    # What the first had finished is not made again: the pool.
    assert "ingest" not in summary(root, "second")["seconds"]


@pytest.mark.slow
def test_of_two_runs_at_once_both_end_and_each_sample_is_scored_by_one(
    settings: list[str], s3: Server, on_disk: Path, tmp_path: Path
) -> None:
    root, names = f"{s3.uri}/both", ["first", "second"]
    with (
        started(command(settings, root, run="first"), tmp_path / "first") as first,
        started(command(settings, root, run="second"), tmp_path / "second") as second,
    ):
        for process, name in zip((first, second), names, strict=True):
            assert process.wait() == 0, (tmp_path / name).read_text()
    scored = [summary(root, name)["scoring"]["samples_scored"] for name in names]
    pool = summary(root, "first")["counts"]["pool"]
    assert [sum(each[model] for each in scored) for model in ("base", "calibrated")] == [pool] * 2
    assert selection(root, "first") == selection(root, "second") == selection(str(on_disk))
