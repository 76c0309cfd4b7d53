"""cluster.yaml: what can be known of it without a cloud."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import ray.autoscaler
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).resolve().parents[1]


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


def test_workers_are_spot_machines_with_gpus_and_start_from_none(cluster: dict[str, Any]) -> None:
    assert workers(cluster)
    for worker in workers(cluster):
        assert worker["min_workers"] == 0 < worker["max_workers"] <= cluster["max_workers"]
        assert worker["resources"]["GPU"] > 0
        assert worker["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}


def test_the_workers_of_one_training_fit(cluster: dict[str, Any]) -> None:
    train = yaml.safe_load((ROOT / "conf/cluster/large.yaml").read_text())["cluster"]["train"]
    gpus = max(worker["resources"]["GPU"] for worker in workers(cluster))
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
