"""cluster.yaml: what can be known of it without a cloud, and its shape under Ray's autoscaler."""

from __future__ import annotations

import copy
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import psutil
import pytest
import ray
import ray.autoscaler
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from instructdiff_ray.demo.pool import write_pool
from instructdiff_ray.models.model import Model
from instructdiff_ray.resources import GPU_MACHINE, HEAD_MACHINE, MACHINE_LABEL
from tests.faults import TRIED_OUT, Gate, started
from tests.heads import ROOT, Head, running_head
from tests.processors import ROWS_PER_BATCH
from tests.test_faults import durable, wait
from tests.test_submit import check_selection


@pytest.fixture
def cluster() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


def workers(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    types = cluster["available_node_types"]
    return [types[name] for name in types if name != cluster["head_node_type"]]


def test_ray_accepts_it(cluster: dict[str, Any]) -> None:
    schema = json.loads(Path(ray.autoscaler.__file__).with_name("ray-schema.json").read_text())
    jsonschema.validate(cluster, schema)
    validate_config(prepare_config(copy.deepcopy(cluster)))


def test_the_head_takes_no_model_work(cluster: dict[str, Any]) -> None:
    head = cluster["available_node_types"][cluster["head_node_type"]]
    # Named, for what is not named is detected on the machine.
    assert head["resources"] == {"CPU": 0, "GPU": 0}
    assert "InstanceMarketOptions" not in head["node_config"]


def test_workers_are_spot_machines_and_start_from_none(cluster: dict[str, Any]) -> None:
    for worker in workers(cluster):
        assert worker["min_workers"] == 0 < worker["max_workers"]
        assert worker["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert sum(worker["max_workers"] for worker in workers(cluster)) <= cluster["max_workers"]


def test_machines_with_gpus_are_labelled_for_the_work_that_needs_them(
    cluster: dict[str, Any],
) -> None:
    types = cluster["available_node_types"]
    assert types[cluster["head_node_type"]]["labels"] == {MACHINE_LABEL: HEAD_MACHINE}
    with_gpus = [w for w in workers(cluster) if w["resources"].get("GPU")]
    others = [w for w in workers(cluster) if w not in with_gpus]
    assert with_gpus and others
    assert all(worker["labels"] == {MACHINE_LABEL: GPU_MACHINE} for worker in with_gpus)
    assert all(worker["labels"][MACHINE_LABEL] != GPU_MACHINE for worker in others)


def test_the_workers_of_one_training_fit(cluster: dict[str, Any]) -> None:
    train = yaml.safe_load((ROOT / "conf/cluster/large.yaml").read_text())["cluster"]["train"]
    gpus = max(worker["resources"].get("GPU", 0) for worker in workers(cluster))
    assert train["workers"] * train["gpus_per_worker"] <= gpus


def test_head_and_workers_share_image_and_role(cluster: dict[str, Any]) -> None:
    configs = [node["node_config"] for node in cluster["available_node_types"].values()]
    for name in ("ImageId", "IamInstanceProfile"):
        assert all(config[name] == configs[0][name] for config in configs)


def test_it_installs_the_lock_file_and_so_this_ray(cluster: dict[str, Any]) -> None:
    mounts = {
        remote: local
        for remote, local in cluster["file_mounts"].items()
        if local.endswith("requirements.lock")
    }
    ((remote, local),) = mounts.items()
    assert f"ray=={ray.__version__}" in (ROOT / local).read_text().splitlines()
    home = f"/home/{cluster['auth']['ssh_user']}"
    installed = remote.replace(home, "~")
    assert any(f"pip install --quiet -r {installed}" in line for line in cluster["setup_commands"])


def test_only_who_has_the_token_may_submit(cluster: dict[str, Any]) -> None:
    assert f"/home/{cluster['auth']['ssh_user']}/.ray/auth_token" in cluster["file_mounts"]
    assert any("RAY_AUTH_MODE=token" in line for line in cluster["initialization_commands"])


PROCESSES = {"CPU": 4, "object_store_memory": 200_000_000}
TRAINING_ON_PROCESSORS = (
    "cluster=large",
    "cluster.precision=fp32",
    "cluster.train.workers=1",
    "cluster.train.gpus_per_worker=0",
)
MACHINES = """
import json, ray
ray.init(log_to_driver=False, logging_level="error")
labels = [(node["Labels"]["instructdiff-machine"], node["Alive"]) for node in ray.nodes()]
print("MACHINES", json.dumps(labels))
"""


# Tasks of the library, more at once than one CPU does while the autoscaler looks.
MUCH_WORK = """
import ray, time
from instructdiff_ray.pool.tasks import results, task
ray.init(log_to_driver=False, logging_level="error")

def work(number):
    time.sleep(4)
    return number

start = task(work)
assert results(start(n) for n in range(6)) == list(range(6))
"""


def joined(head: Head, code: str) -> str:
    """What the code prints, run on a machine of the cluster that the head has."""
    joining = replace(head, environment=head.environment | {"RAY_ADDRESS": head.address})
    done = joining.run(sys.executable, "-c", code)
    assert done.returncode == 0, done.stdout
    return done.stdout


def machines(head: Head) -> tuple[list[str], list[str]]:
    """The labels of all workers that there ever were, and of those that are there."""
    lines = joined(head, MACHINES).splitlines()
    (line,) = [line for line in lines if line.startswith("MACHINES ")]
    workers = [each for each in json.loads(line.removeprefix("MACHINES ")) if each[0] != "head"]
    return sorted(label for label, _ in workers), sorted(label for label, alive in workers if alive)


def lose_machine(worker: psutil.Process) -> None:
    """End the machine on which this worker runs: a raylet, and all that it has started."""
    raylet = worker.parent()
    assert raylet is not None and "raylet" in raylet.name()
    processes = [raylet, *raylet.children(recursive=True)]
    for process in processes:  # it ends at once, and nothing of it notices
        process.suspend()
    for process in processes:
        process.kill()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_each_stage_starts_the_machines_that_it_needs_and_no_others(
    model: Model, tmp_path: Path
) -> None:
    """The machines are processes, and GPUs numbers: the models run on processors.

    Of machines without GPUs one is all that can be had, with one CPU, and there is work for more:
    without labels, Ray would start one with a GPU for it.
    """
    node = {"node_config": {}, "min_workers": 0}
    node_types = {
        "ray.head.default": {**node, "resources": {"CPU": 0}, "max_workers": 0},
        "cpu_worker": {**node, "resources": {**PROCESSES, "CPU": 1}, "max_workers": 1},
        "gpu_worker": {**node, "resources": {**PROCESSES, "GPU": 1}, "max_workers": 2},
    }
    for name, label in zip(node_types, ("head", "cpu", "gpu"), strict=True):
        node_types[name]["labels"] = {MACHINE_LABEL: label}
    gate = Gate(tmp_path / "gate")
    write_pool(str(tmp_path / "pool.jsonl"), seed=5, size=120)
    settings = [
        *TRAINING_ON_PROCESSORS,
        "cluster.score.gpus_per_actor=1",
        "cluster.score.models_per_actor=2",
        "cluster.score.max_actors=1",
        f"data.path={tmp_path / 'pool.jsonl'}",
        f"model.base={gate.model(model, tmp_path / 'model').path}",
        "model.trust_remote_code=true",
        f"storage={tmp_path / 'storage'}",
        "calibrate.epochs=1",
        "calibrate.global_batch_size=8",
        "calibrate.max_length=256",
    ]
    with running_head(["--num-cpus=0", f"--labels={MACHINE_LABEL}=head"], node_types) as head:
        settings.append(f"cluster.address={head.address}")

        def command(job: str, *more: str) -> list[str]:
            return [sys.executable, "-m", "tests.processors", f"jobs/{job}.py", *settings, *more]

        joined(head, MUCH_WORK)
        for job in ("ingest", "calibrate"):
            done = head.run(*command(job))
            assert done.returncode == 0, done.stdout
        assert set(machines(head)[0]) == {"cpu"}

        # The scorer's machine is lost, when some blocks are finished and one is not.
        log = tmp_path / "log"
        gate.shut(after=2 * ROWS_PER_BATCH + TRIED_OUT)
        with started(command("score"), log, head.environment) as score:
            scorer = gate.arrival(lambda: score.poll() is not None)
            assert scorer, log.read_text()
            wait(score, log, lambda: durable(tmp_path) > 0)
            lose_machine(scorer)
            (index,) = tmp_path.glob("storage/pool/*/manifest.json")
            samples = json.loads(index.read_text())["info"]["counts"]["pool"]
            gate.shut(after=samples - durable(tmp_path) // 2 + TRIED_OUT)  # of two models each
            assert gate.arrival(lambda: score.poll() is not None) is None, "a sample came again"
            assert score.wait() == 0, log.read_text()
        assert f"forward passes now: base {samples}, calibrated {samples}" in log.read_text()
        with_gpus = machines(head)[0].count("gpu")
        assert with_gpus > 1

        while machines(head)[1]:
            pass  # they go when nothing is left to do, or this test runs out of time
        select = head.run(*command("select", f"run_dir={tmp_path}"))
        assert select.returncode == 0, select.stdout
        check_selection(tmp_path)
        assert machines(head)[1] == ["cpu"]
        assert machines(head)[0].count("gpu") == with_gpus


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_cluster_without_labels_adds_its_only_kind_of_machine_and_finishes(
    model_folder: str, tmp_path: Path
) -> None:
    node_types = {
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "worker": {
            "resources": {**PROCESSES, "GPU": 1},
            "node_config": {},
            "min_workers": 0,
            "max_workers": 2,
        },
    }
    write_pool(str(tmp_path / "pool.jsonl"), seed=5, size=120)
    settings = [
        *TRAINING_ON_PROCESSORS,
        "cluster.score.gpus_per_actor=0",
        f"data.path={tmp_path / 'pool.jsonl'}",
        f"model.base={model_folder}",
        f"storage={tmp_path / 'storage'}",
        "calibrate.epochs=1",
        "calibrate.global_batch_size=8",
        "calibrate.max_length=256",
        f"run_dir={tmp_path}",
    ]
    with running_head(["--num-cpus=0"], node_types) as head:
        settings.append(f"cluster.address={head.address}")
        job = head.run(sys.executable, "jobs/run.py", *settings)
    assert job.returncode == 0, job.stdout
    check_selection(tmp_path)
