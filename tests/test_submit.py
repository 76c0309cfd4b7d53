"""The project submitted to a Ray cluster's job server from the command line, as its users do."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from instructdiff_ray.demo.pool import write_pool
from tests.heads import RAY, ROOT, Head, running_head

ROWS = 120

pytestmark = pytest.mark.timeout(1800)


def check_selection(folder: Path) -> None:
    """The selection is there, and agrees with its summary and its ranking."""
    counts = json.loads((folder / "summary.json").read_text())["counts"]
    selected = (folder / "selected.jsonl").read_text().splitlines()
    fates = pq.read_table(folder / "ranking.parquet")["fate"].to_pylist()
    assert len(selected) == counts["selected"] == fates.count("selected") > 0
    assert len(fates) == counts["pool"]
    assert all(json.loads(line) for line in selected)


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with running_head(["--num-cpus=4"]) as running:
        yield running


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, model_folder: str) -> list[str]:
    """A pool of a few rows under a tiny model, with artifacts outside the submitted folder."""
    folder = tmp_path_factory.mktemp("submit")
    write_pool(str(folder / "pool.jsonl"), seed=5, size=ROWS)
    return [
        f"data.path={folder / 'pool.jsonl'}",
        f"model.base={model_folder}",
        f"storage={folder / 'storage'}",
        "calibrate.epochs=1",
        "calibrate.global_batch_size=8",
        "calibrate.ratio=0.1",
        "calibrate.max_length=256",
    ]


def test_the_submitted_method_leaves_its_selection(
    head: Head, settings: list[str], tmp_path: Path
) -> None:
    job = head.submit("jobs/run.py", *settings, f"run_dir={tmp_path}")
    assert job.returncode == 0, job.stdout
    check_selection(tmp_path)


@pytest.mark.slow
def test_the_dashboard_knows_of_the_training_and_its_workers(
    head: Head, settings: list[str], tmp_path: Path
) -> None:
    # Another seed, and so a training of its own.
    job = head.submit("jobs/run.py", *settings, "seed=1", f"run_dir={tmp_path}")
    assert job.returncode == 0, job.stdout
    latest = head.ask("/api/train/v2/runs/v1")["train_runs"][0]
    assert (latest["name"], latest["status"]) == ("calibrate", "FINISHED")
    (attempt,) = latest["attempts"]
    assert attempt["status"] == "FINISHED"
    workers = [(each["world_rank"], each["status"]) for each in attempt["workers"]]
    assert workers == [(0, "DEAD")]  # it has done its work


@pytest.mark.slow
def test_storage_inside_the_submitted_folder_is_refused_in_one_line(
    head: Head, settings: list[str]
) -> None:
    # This entry would hide Python's own `select`, were its folder first on the path.
    job = head.submit("jobs/select.py", *settings, "storage=outputs")
    assert job.returncode != 0
    assert "Traceback" not in job.stdout
    # Streamed once, and once more in the status message of `ray job submit`.
    (line,) = {line for line in job.stdout.splitlines() if line.startswith("error:")}
    assert line.startswith("error: storage=outputs is relative")


PROBE = """
import json, os, ray
import instructdiff_ray

@ray.remote
def files():
    import instructdiff_ray, select
    return instructdiff_ray.__file__, select.__file__

ray.init(log_to_driver=False, logging_level="error")
here = [os.getcwd(), os.listdir(), instructdiff_ray.__file__]
print("PROBE", json.dumps(here + list(ray.get(files.remote()))))
"""


def test_driver_and_workers_import_the_submitted_copy(head: Head) -> None:
    """So it needs no installation, nor has an installed one a say; and only sources travel."""
    job = head.submit("-c", PROBE)
    assert job.returncode == 0, job.stdout
    (line,) = [line for line in job.stdout.splitlines() if line.startswith("PROBE ")]
    folder, names, in_driver, in_worker, select = json.loads(line.removeprefix("PROBE "))
    assert in_driver == in_worker == f"{folder}/instructdiff_ray/__init__.py"
    assert not folder.startswith(str(ROOT))
    assert not select.startswith(folder)
    assert {"conf", "instructdiff_ray", "jobs"} <= set(names)
    assert not {".git", ".venv", "outputs"} & set(names)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_demo_and_a_sweep_over_it_can_be_submitted(head: Head, tmp_path: Path) -> None:
    storage, demo, sweep = (tmp_path / name for name in ("storage", "demo", "sweep"))
    job = head.submit("jobs/run.py", f"storage={storage}", f"run_dir={demo}")
    assert job.returncode == 0, job.stdout
    check_selection(demo)

    points = ["select.ratio=0.05,0.2", f"storage={storage}", f"run_dir={sweep}"]
    job = head.submit("jobs/run.py", "-m", *points)
    assert job.returncode == 0, job.stdout
    for point in ("0", "1"):
        check_selection(sweep / point)
        summary = json.loads((sweep / point / "summary.json").read_text())
        assert summary["scoring"]["samples_scored"] == {"base": 0, "calibrated": 0}


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_sweep_of_jobs_shares_what_its_points_have_in_common(
    head: Head, settings: list[str], tmp_path: Path
) -> None:
    points = [*settings, "select.ratio=0.1,0.2", "seed=7", f"run_dir={tmp_path / 'sweep'}"]
    options = ["--address", head.jobs, "--python", sys.executable, "--parallel", "2"]
    job = head.run(sys.executable, "jobs/sweep.py", *options, *points)
    assert job.returncode == 0, job.stdout
    summaries = []
    for point in ("0", "1"):
        check_selection(tmp_path / "sweep" / point)
        summaries.append(json.loads((tmp_path / "sweep" / point / "summary.json").read_text()))
    # Both began at once, and one of them waited for what the other made.
    pool = summaries[0]["counts"]["pool"]
    scored = [summary["scoring"]["samples_scored"]["calibrated"] for summary in summaries]
    assert sorted(scored) == [0, pool]
    table = job.stdout[job.stdout.index("all runs of the sweep") :].splitlines()
    assert table[1].split()[:2] == ["run", "select.ratio"] and len(table) == 4
    bad = [*settings, "select.ratio=0.9,0.95", f"run_dir={tmp_path / 'bad'}"]
    job = head.run(sys.executable, "jobs/sweep.py", *options, *bad)
    assert job.returncode == 1
    assert job.stdout.count("failed; error: select.ratio=0.9") == 2


@pytest.mark.slow
def test_who_stops_a_sweep_stops_its_points(
    head: Head, settings: list[str], tmp_path: Path
) -> None:
    command = [sys.executable, str(ROOT / "jobs/sweep.py"), "--python", sys.executable]
    points = [*settings, "seed=8,9", f"run_dir={tmp_path / 'sweep'}"]
    submit = [RAY, "job", "submit", "--address", head.jobs, "--submission-id", "the-sweep"]
    sweep = head.run(*submit, "--no-wait", "--working-dir", str(ROOT), "--", *command, *points)
    assert sweep.returncode == 0, sweep.stdout

    def ask(what: str, job: str) -> str:
        return head.run(RAY, "job", what, "--address", head.jobs, job).stdout

    while len(jobs := {*re.findall(r"(sweep-\S+) submitted", ask("logs", "the-sweep"))}) < 2:
        time.sleep(1)
    assert "the-sweep' was stopped" in ask("stop", "the-sweep")
    for job in jobs:
        while "stopped" not in (status := ask("status", job)):
            assert "SUCCEEDED" not in status and "FAILED" not in status
            time.sleep(1)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_training_says_what_it_waits_for_and_ends_with_the_runs_patience(
    settings: list[str], tmp_path: Path
) -> None:
    """The cluster has machines for all but the training, and none with a GPU."""
    node_types = {
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "cpu_worker": {
            "resources": {"CPU": 4},
            "node_config": {},
            "min_workers": 0,
            "max_workers": 1,
        },
    }
    with running_head(["--num-cpus=0"], node_types) as head:
        cluster = ["cluster=large", "cluster.train.workers=1", "cluster.patience_hours=0.05"]
        cluster += [f"cluster.address={head.address}", f"run_dir={tmp_path}", "seed=10"]
        job = head.run(sys.executable, "jobs/run.py", *settings, *cluster)
    assert job.returncode == 1
    lines = job.stdout.splitlines()
    assert any(line.startswith("waiting for 1 GPU: the cluster has 0, 0 of") for line in lines)
    (error,) = [line for line in lines if line.startswith("error: ")]
    assert "nothing was finished for cluster.patience_hours" in error
    assert "Traceback" not in job.stdout


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_job_that_was_stopped_goes_on_when_it_is_submitted_again(
    head: Head, settings: list[str], tmp_path: Path
) -> None:
    fresh = [setting for setting in settings if not setting.startswith("storage=")]
    folders = [f"storage={tmp_path / 'storage'}", f"run_dir={tmp_path}"]
    job = ["jobs/run.py", *fresh, *folders]
    submit = [RAY, "job", "submit", "--address", head.jobs, "--submission-id", "to-be-stopped"]
    command = ["--no-wait", "--working-dir", str(ROOT), "--", sys.executable, *job]
    started = head.run(*submit, *command)
    assert started.returncode == 0, started.stdout

    def told() -> dict[str, Any]:
        file = tmp_path / "progress.json"
        return json.loads(file.read_text()) if file.exists() else {"stages": []}

    while "calibrate" not in {stage["name"] for stage in told()["stages"]}:
        time.sleep(0.2)
    stopped = head.run(RAY, "job", "stop", "--address", head.jobs, "to-be-stopped")
    assert "was stopped" in stopped.stdout
    assert told()["state"] == "failed" and not (tmp_path / "summary.json").exists()
    again = head.submit(*job)
    assert again.returncode == 0, again.stdout
    check_selection(tmp_path)
    assert told()["state"] == "finished"
    # What the first had finished was not made again.
    assert "ingest" not in json.loads((tmp_path / "summary.json").read_text())["seconds"]
