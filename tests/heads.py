"""A Ray head of its own beside any other, for tests that submit to one or let it add machines."""

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

import pytest
import ray
import yaml
from ray.autoscaler._private.fake_multi_node.node_provider import (
    FAKE_HEAD_NODE_ID,
    FAKE_HEAD_NODE_TYPE,
    FakeMultiNodeProvider,
)

from tests.faults import end_session

ROOT = Path(__file__).resolve().parents[1]
RAY = str(Path(sys.executable).with_name("ray"))


@dataclass(frozen=True)
class Head:
    """A running head: its own address, its job server's, the environment that has its token, and
    the folder in which Ray has its own."""

    address: str
    jobs: str
    environment: dict[str, str]
    folder: Path

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

    node_types: machines that its autoscaler (version 2, that of `ray up` and of KubeRay) may add;
        here they are processes, and gone again when they were idle for a quarter of a minute.
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
            "RAY_enable_autoscaler_v2": "1",
            "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
            "RAY_NODE_TYPE_NAME": FAKE_HEAD_NODE_TYPE,
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        }
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            command, env=head_environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        head = Head(address, f"http://127.0.0.1:{jobs}", environment, folder)
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
        "max_workers": sum(node["max_workers"] for node in node_types.values()),
        "idle_timeout_minutes": 0.25,
        "upscaling_speed": 1.0,
        "provider": {
            # By its module, for Ray's wheels lack the file that its name stands for.
            "type": "external",
            "module": f"{FakeMultiNodeProvider.__module__}.{FakeMultiNodeProvider.__name__}",
            "gcs_address": address,
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "launch_multiple": True,
        },
        "head_node_type": FAKE_HEAD_NODE_TYPE,
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
