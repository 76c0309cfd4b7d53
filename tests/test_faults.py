"""Whatever dies, the same command finishes the work, repeats almost none, and selects the same."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
from ray.cluster_utils import Cluster

from instructdiff_ray.demo.pool import write_pool
from instructdiff_ray.models.model import Model
from instructdiff_ray.scoring.dataflow import ROWS_PER_BATCH
from instructdiff_ray.scoring.shards import Shards
from instructdiff_ray.storage.filesystem import Folder
from tests.faults import TRIED_OUT, Gate, mounted_disk, started
from tests.test_jobs import composed
from tests.test_pipeline import run_method

ROOT = Path(__file__).resolve().parents[1]
MOMENTS = 20
BATCH = 64  # of a training
# A gate's number at which a scorer has left a first piece, and can't get through the pool: its task
# has one or two blocks, in whatever order they come, and one of them may be the small last one.
FIRST_TASK = 2 * ROWS_PER_BATCH + TRIED_OUT
pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Gate:
    """What every model here waits at, and is shut by the tests that need a run to stand still."""
    return Gate(tmp_path_factory.mktemp("gate") / "gate")


@pytest.fixture(autouse=True)
def open_at_the_end(gate: Gate) -> Iterator[None]:
    yield
    gate.open()


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, model: Model, gate: Gate) -> list[str]:
    """A pool of three blocks, and a training of four steps with a checkpoint after each."""
    folder = tmp_path_factory.mktemp("faults")
    write_pool(str(folder / "pool.jsonl"), seed=9, size=2600)
    return [
        f"data.path={folder / 'pool.jsonl'}",
        "data.domain_column=domain",
        # Under this name calibrated models are saved too, and share the copy of its code.
        f"model.base={gate.model(model, folder / 'model').path}",
        "model.trust_remote_code=true",
        "calibrate.epochs=1",
        f"calibrate.global_batch_size={BATCH}",
        "calibrate.learning_rate=1e-3",
        "calibrate.max_length=256",
        "cluster.train.checkpoint_minutes=0",
    ]


def command(settings: list[str], folder: Path) -> list[str]:
    places = [f"storage={folder / 'storage'}", f"run_dir={folder / 'run'}"]
    return [sys.executable, str(ROOT / "jobs/run.py"), *settings, *places]


def finish(settings: list[str], folder: Path) -> dict:
    """The command, undisturbed; its summary."""
    folder.mkdir(exist_ok=True)
    job = subprocess.run(
        command(settings, folder), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert job.returncode == 0, job.stdout
    return json.loads((folder / "run/summary.json").read_text())


def wait(process: subprocess.Popen[bytes], log: Path, when: Callable[[], bool]) -> None:
    """Until it is so; fails where the process ended before."""
    while not when():
        assert process.poll() is None, log.read_text()
        time.sleep(0.02)


def arrival(gate: Gate, process: subprocess.Popen[bytes], log: Path) -> psutil.Process:
    """The next process of this run that waits at the gate."""
    found = gate.arrival(lambda: process.poll() is not None)
    assert found, log.read_text()
    return found


def durable(folder: Path) -> int:
    """Rows in shards of all models."""
    shards = [Shards(Folder(str(path))) for path in folder.glob("storage/pieces/*")]
    pieces = [f"{each.folder.path}/{name}" for each in shards for name in each.pieces]
    folded = sum(snapshot.rows for each in shards for snapshot in each.snapshots)
    return folded + sum(pq.read_metadata(piece).num_rows for piece in pieces)


def largest_difference(a: Path, b: Path) -> float:
    """Between two runs' scores, in nats."""
    one, other = (pq.read_table(folder / "run/ranking.parquet") for folder in (a, b))
    assert one["sample_id"].equals(other["sample_id"])
    names = [name for name in one.column_names if name.startswith(("base_", "calibrated_"))]
    return max(float(np.abs(one[name].to_numpy() - other[name].to_numpy()).max()) for name in names)


def selected(folder: Path) -> set[str]:
    rows = pq.read_table(folder / "run/ranking.parquet", columns=["sample_id", "fate"]).to_pylist()
    return {row["sample_id"] for row in rows if row["fate"] == "selected"}


def check_same(undisturbed: Path, recovered: Path) -> None:
    name = "run/selected.jsonl"
    assert (recovered / name).read_bytes() == (undisturbed / name).read_bytes()
    fates = [pq.read_table(f / "run/ranking.parquet")["fate"] for f in (undisturbed, recovered)]
    assert fates[0].equals(fates[1])
    assert largest_difference(undisturbed, recovered) < 1e-5


@pytest.fixture(scope="module")
def undisturbed(
    settings: list[str], tmp_path_factory: pytest.TempPathFactory, ray_session: None
) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    summary = run_method(composed("config", *command(settings, folder)[2:])).summary
    assert summary["counts"]["pool"] > FIRST_TASK  # or the gate would hold nobody
    return folder


@pytest.mark.slow
def test_a_driver_killed_while_scoring_goes_on_with_what_was_not_scored(
    settings: list[str], undisturbed: Path, tmp_path: Path, gate: Gate
) -> None:
    for done in ("pool", "models"):
        shutil.copytree(undisturbed / "storage" / done, tmp_path / "storage" / done)
    log = tmp_path / "log"
    gate.shut(after=FIRST_TASK)
    with started(command(settings, tmp_path), log) as process:
        wait(process, log, lambda: durable(tmp_path) > 0)
        process.kill()
    assert not (tmp_path / "run/summary.json").exists()
    before = durable(tmp_path)
    gate.open()
    summary = run_method(composed("config", *command(settings, tmp_path)[2:])).summary
    pool = summary["counts"]["pool"]
    assert 0 < before < 2 * pool
    assert sum(summary["scoring"]["samples_scored"].values()) == 2 * pool - before
    assert not {"ingest", "calibrate"} & summary["seconds"].keys()
    check_same(undisturbed, tmp_path)


@pytest.mark.slow
def test_two_runs_that_share_storage_share_the_work_and_select_the_same(
    settings: list[str], undisturbed: Path, tmp_path: Path, gate: Gate
) -> None:
    folders = [tmp_path / name for name in ("one", "two")]
    logs = [tmp_path / f"{folder.name}.log" for folder in folders]
    runs = [[*command(settings, tmp_path), f"run_dir={folder}/run"] for folder in folders]
    gate.shut(after=0)
    with started(runs[0], logs[0]) as one:
        arrival(gate, one, logs[0])  # it trains
        with started(runs[1], logs[1]) as two:
            wait(two, logs[1], lambda: "another run makes models/" in logs[1].read_text())
            gate.open()
            for process, log in zip((one, two), logs, strict=True):
                assert process.wait() == 0, log.read_text()
    scored = 0
    for folder in folders:
        check_same(undisturbed, folder)
        summary = json.loads((folder / "run/summary.json").read_text())
        scored += sum(summary["scoring"]["samples_scored"].values())
    assert scored == 2 * summary["counts"]["pool"]


@pytest.mark.slow
def test_more_workers_and_scorers_select_the_same_but_for_near_ties(
    settings: list[str],
    undisturbed: Path,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    more = [
        "cluster.train.workers=2",
        "cluster.score.min_actors=2",
        "cluster.score.max_actors=2",
        "cluster.score.tokens_per_batch=1000",
    ]
    finish([*settings, *more], tmp_path)
    one, other = (selected(folder) for folder in (undisturbed, tmp_path))
    figures = {
        "selected": len(one),
        "differ": len(one - other),
        "largest_difference": largest_difference(undisturbed, tmp_path),
    }
    print(json.dumps(figures))
    record_property("near_ties", json.dumps(figures))
    assert len(one) == len(other)
    assert len(one - other) <= 0.02 * len(one)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with mounted_disk(tmp_path / "small", "300k") as folder:
        yield folder


@pytest.mark.slow
def test_a_full_disk_ends_in_one_line_and_the_run_goes_on_with_more_room(
    settings: list[str], undisturbed: Path, small_disk: Path
) -> None:
    full = 0
    while full < 3:
        job = subprocess.run(command(settings, small_disk), capture_output=True, text=True)
        if job.returncode == 0:
            break
        assert job.returncode == 1
        (line,) = job.stderr.splitlines()
        assert line.startswith("error: the disk is full")
        assert not (small_disk / "run/summary.json").exists()
        full += 1
        room = 40 * int(shutil.disk_usage(small_disk).total)
        subprocess.run(["mount", "-o", f"remount,size={room}", str(small_disk)], check=True)
    assert job.returncode == 0, job.stderr
    assert full > 0
    check_same(undisturbed, small_disk)


@pytest.mark.slow
def test_a_node_that_is_lost_while_training_and_while_scoring_costs_no_sample(
    settings: list[str], undisturbed: Path, tmp_path: Path, gate: Gate
) -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    nodes = [cluster.add_node(num_cpus=3) for _ in range(2)]

    def lose(worker: psutil.Process) -> None:
        raylet = worker.parent()
        assert raylet is not None
        (node,) = (n for n in nodes if n.all_processes["raylet"][0].process.pid == raylet.pid)
        nodes.remove(node)
        worker.suspend()  # it is lost with its node, and not when it notices
        cluster.remove_node(node, allow_graceful=False)
        worker.kill()
        nodes.append(cluster.add_node(num_cpus=3))

    log = tmp_path / "log"
    # In the third step, when the checkpoint of the first is finished.
    gate.shut(after=2 * BATCH)
    try:
        with started(
            [*command(settings, tmp_path), f"cluster.address={cluster.address}"], log
        ) as process:
            trainer = arrival(gate, process, log)
            assert list(tmp_path.glob("storage/checkpoints/*/manifest.json"))
            lose(trainer)
            gate.shut(after=FIRST_TASK)
            scorer = arrival(gate, process, log)
            wait(process, log, lambda: durable(tmp_path) > 0)
            lose(scorer)
            gate.open()
            assert process.wait() == 0, log.read_text()
    finally:
        cluster.shutdown()
    check_same(undisturbed, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_a_driver_killed_at_any_moment_finishes_with_the_same_selection(
    settings: list[str],
    undisturbed: Path,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    rng = random.Random(2026)
    began = time.monotonic()
    finish(settings, tmp_path / "whole")
    whole = time.monotonic() - began
    report: list[dict] = []
    # Where in a run such a moment lies depends on the machine, and none is meant: whatever it hits,
    # the same holds. A run that was faster shows nothing and doesn't count.
    while sum(row["died"] for row in report) < MOMENTS:
        folder, moment = tmp_path / str(len(report)), rng.uniform(0, whole)
        folder.mkdir()
        with started(command(settings, folder), folder / "killed.log") as process:
            with suppress(subprocess.TimeoutExpired):
                process.wait(moment)
            process.kill()
        # A folder with a summary is complete, even if its run was killed before it had ended.
        died = not (folder / "run/summary.json").exists()
        assert process.returncode in ((-signal.SIGKILL,) if died else (-signal.SIGKILL, 0))
        if not died:
            check_same(undisturbed, folder)
        log = (folder / "killed.log").read_text().splitlines()
        before = durable(folder)
        summary = finish(settings, folder)
        check_same(undisturbed, folder)
        passes = sum(summary["scoring"]["samples_scored"].values())
        report.append(
            {
                "moment_s": round(moment, 1),
                "died": died,
                "said_last": log[-1] if log else "",
                "rows_in_shards": before,
                "scored_after": passes,
                # What was in shards and scored again: nothing, if shards are what they claim.
                "scored_twice": passes + before - 2 * summary["counts"]["pool"] if died else 0,
                "recovered_in": {k: round(v, 1) for k, v in summary["seconds"].items()},
                "largest_difference": largest_difference(undisturbed, folder),
            }
        )
        print(json.dumps(report[-1]), flush=True)
    assert all(row["scored_twice"] == 0 for row in report)
    record_property("moments", json.dumps(report))
