"""The project submitted to a Ray cluster's job server from the command line, as its users do."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import ray
import yaml

from instructdiff_ray.demo.pool import write_pool
from tests.faults import end_session

ROOT = Path(__file__).resolve().parents[1]
RAY = str(Path(sys.executable).with_name("ray"))
ROWS = 120

pytestmark = pytest.mark.timeout(1800)


@dataclass(frozen=True)
class Head:
    """A running head: its own address, its job server's, and the environment that has its token."""

    address: str
    jobs: str
    environment: dict[str, str]

    def submit(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Submit this checkout with `python command…`, wait, and give status and all output."""
        submit = [RAY, "job", "submit", "--address", self.jobs, "--working-dir", str(ROOT), "--"]
        return self.run(*submit, sys.executable, *command)

    def ask(self, path: str, body: object = None) -> Any:
        """What its dashboard answers: to a GET, or to a POST of this body."""
        headers = {
            "Authorization": f"Bearer {self.environment['RAY_AUTH_TOKEN']}",
            "Content-Type": "application/json",
        }
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.jobs}{path}", data, headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextmanager
def running_head(options: list[str], node_types: dict | None = None) -> Iterator[Head]:
    """`ray start --head` beside any other Ray of this machine: own ports, folder and token.

    node_types: machines that it may add by itself; here they are processes.
    """
    # Ray's sockets lie below, and their paths may not be long.
    folder = Path(tempfile.mkdtemp(prefix="ray-head-", dir="/tmp"))
    port, jobs, client, agent = free_ports(4)
    address = f"{ray.util.get_node_ip_address()}:{port}"
    environment = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    for other in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):  # either goes before --address
        environment.pop(other, None)
    head_environment = environment | {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0"}
    command = [RAY, "start", "--head", "--block", *options]
    command += [f"--port={port}", f"--dashboard-port={jobs}", f"--ray-client-server-port={client}"]
    command += [f"--dashboard-agent-listen-port={agent}", f"--temp-dir={folder / 'ray'}"]
    command += ["--min-worker-port=0", "--max-worker-port=0", "--object-store-memory=200000000"]
    if node_types:
        autoscaler = folder / "autoscaler.yaml"
        autoscaler.write_text(yaml.safe_dump(process_cluster(node_types, address)))
        command += [f"--autoscaling-config={autoscaler}"]
        head_environment |= {
            "RAY_FAKE_CLUSTER": "1",
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": "f" * 51 + "00000",
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        }
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            command, env=head_environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        head = Head(address, f"http://127.0.0.1:{jobs}", environment)
        wait_until_ready(head, process, folder)
        yield head
    finally:
        process.terminate()
        end_session(process, patience_s=30)
        shutil.rmtree(folder)


def process_cluster(node_types: dict, address: str) -> dict:
    """A cluster.yaml for Ray's provider of machines that are processes on this one."""
    lists = (
        "initialization_commands setup_commands head_setup_commands worker_setup_commands"
        " head_start_ray_commands worker_start_ray_commands cluster_synced_files rsync_exclude"
        " rsync_filter"
    )
    return {
        "cluster_name": "processes",
        "max_workers": max(node["max_workers"] for node in node_types.values()),
        "idle_timeout_minutes": 1,
        "upscaling_speed": 1.0,
        "provider": {
            "type": "fake_multinode",
            "gcs_address": address,
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "head_node_type": "ray.head.default",
        "available_node_types": node_types,
        "auth": {},
        "docker": {},
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
        **{name: [] for name in lists.split()},
    }


def wait_until_ready(head: Head, process: subprocess.Popen, folder: Path) -> None:
    """Until it takes a job that does nothing: it answers before the agent that starts jobs does."""
    while process.poll() is None:
        try:
            head.ask("/api/jobs/", {"entrypoint": "true"})
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    pytest.fail(f"the head did not start:\n{(folder / 'log').read_text()}")


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
def test_a_cluster_without_workers_adds_them_and_finishes(
    settings: list[str], tmp_path: Path
) -> None:
    """cluster.yaml's shape under Ray's own autoscaler: a head without CPUs, and workers from 0.

    Only that the machines are processes, and without GPUs. They share a folder of Ray's,
    where each unpacks a submitted copy under the others' feet, so this driver connects by itself.
    """
    node_types = {
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "gpu_worker": {
            "resources": {"CPU": 4, "GPU": 1},
            "node_config": {},
            "min_workers": 0,
            "max_workers": 2,
        },
    }
    cluster = ["cluster=large", "cluster.precision=fp32"]
    cluster += ["cluster.train.workers=1", "cluster.train.gpus_per_worker=0"]
    cluster += ["cluster.score.gpus_per_actor=0"]
    with running_head(["--num-cpus=0"], node_types) as head:
        cluster += [f"cluster.address={head.address}", f"run_dir={tmp_path}"]
        job = head.run(sys.executable, "jobs/run.py", *settings, *cluster)
    assert job.returncode == 0, job.stdout
    check_selection(tmp_path)
