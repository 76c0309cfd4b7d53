"""deploy/: what can be known of the manifests without a Kubernetes."""

from __future__ import annotations

import gzip
import json
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError
from ray.autoscaler._private.kuberay.autoscaling_config import (
    _derive_autoscaling_config_from_ray_cr,
)
from referencing import Registry
from referencing.jsonschema import DRAFT202012

from instructdiff_ray.resources import GPU_MACHINE, HEAD_MACHINE, MACHINE_LABEL
from tests.test_jobs import composed

ROOT = Path(__file__).resolve().parents[2]
DEPLOY, SCHEMAS = ROOT / "deploy", ROOT / "tests/schemas"
OVERLAYS = ("eks", "gke")


def manifests(text: str) -> dict[str, dict[str, Any]]:
    return {manifest["kind"]: manifest for manifest in yaml.safe_load_all(text)}


@pytest.fixture(scope="module")
def base() -> dict[str, dict[str, Any]]:
    files = yaml.safe_load((DEPLOY / "base/kustomization.yaml").read_text())["resources"]
    return manifests("\n---\n".join((DEPLOY / "base" / file).read_text() for file in files))


@pytest.fixture(scope="module", params=OVERLAYS)
def overlay(request: pytest.FixtureRequest) -> dict[str, dict[str, Any]]:
    """What a real kustomize makes of the overlay."""
    tools = {"kustomize": ["kustomize", "build"], "kubectl": ["kubectl", "kustomize"]}
    build = next((command for tool, command in tools.items() if shutil.which(tool)), None)
    if build is None:
        pytest.skip("neither kustomize nor kubectl is on this machine")
    command = [*build, str(DEPLOY / request.param)]
    return manifests(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def validate(manifest: dict[str, Any]) -> None:
    """Raises ValidationError where the API server would refuse it for its fields or their types."""
    kubernetes = json.loads(gzip.decompress((SCHEMAS / "kubernetes-1.34.json.gz").read_bytes()))
    schema = yaml.safe_load((SCHEMAS / "kuberay-1.6.2.yaml").read_text())
    if manifest["kind"] != "RayJob":
        schema = {"$ref": f"kubernetes#/$defs/io.k8s.api.core.v1.{manifest['kind']}"}
    registry: Registry = Registry().with_resource(
        "kubernetes", DRAFT202012.create_resource(kubernetes)
    )
    Draft202012Validator(schema, registry=registry).validate(manifest)


def groups(job: dict[str, Any]) -> dict[str, dict[str, Any]]:
    cluster = job["spec"]["rayClusterSpec"]
    workers = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    return {"head": cluster["headGroupSpec"], **workers}


def test_the_base_has_the_fields_of_kuberay_and_kubernetes(base: dict[str, Any]) -> None:
    assert set(base) == {"RayJob", "ServiceAccount"}
    for manifest in base.values():
        validate(manifest)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("backOffLimit", 3),
        ("backoffLimit", "3"),
        ("rayClusterSpec.authOptions.mode", "tokens"),
        ("rayClusterSpec.headGroupSpec.rayStartParams.num-cpus", 0),
        ("rayClusterSpec.headGroupSpec.template.spec.serviceAccount_name", "instructdiff"),
        ("rayClusterSpec.headGroupSpec.template.spec.containers", {}),
    ],
)
def test_a_field_that_is_wrong_is_found(base: dict[str, Any], path: str, value: object) -> None:
    job = json.loads(json.dumps(base["RayJob"]))
    *parents, name = path.split(".")
    place = job["spec"]
    for parent in parents:
        place = place[parent]
    place[name] = value
    with pytest.raises(ValidationError):
        validate(job)


def test_a_job_goes_on_after_the_loss_of_its_head_and_leaves_no_cluster(
    base: dict[str, Any],
) -> None:
    spec = base["RayJob"]["spec"]
    assert spec["backoffLimit"] > 0
    assert spec["shutdownAfterJobFinishes"]  # KubeRay demands it where there is a TTL
    assert spec["rayClusterSpec"]["rayVersion"] == ray.__version__


def test_rays_autoscaler_reads_the_groups(base: dict[str, Any]) -> None:
    """By Ray's own code: workers from none, GPU machines apart, a head that takes no work."""
    cluster = {
        "metadata": {"name": "instructdiff", "namespace": "default"},
        "spec": base["RayJob"]["spec"]["rayClusterSpec"],
    }
    config = _derive_autoscaling_config_from_ray_cr(cluster)
    types = config["available_node_types"]
    head, cpu, gpu = types[config["head_node_type"]], types["cpu"], types["gpu"]
    assert head["resources"]["CPU"] == 0 and "GPU" not in head["resources"]
    assert head["labels"] == {MACHINE_LABEL: HEAD_MACHINE}
    assert cpu["resources"]["CPU"] > 0 and "GPU" not in cpu["resources"]
    assert cpu["labels"][MACHINE_LABEL] != GPU_MACHINE
    assert gpu["labels"] == {MACHINE_LABEL: GPU_MACHINE}
    assert cpu["min_workers"] == gpu["min_workers"] == 0
    train = yaml.safe_load((ROOT / "conf/cluster/large.yaml").read_text())["cluster"]["train"]
    assert gpu["resources"]["GPU"] >= train["workers"] * train["gpus_per_worker"]


def test_no_pod_is_root_or_has_a_right_that_it_does_not_need(base: dict[str, Any]) -> None:
    account = base["ServiceAccount"]["metadata"]["name"]
    for group in groups(base["RayJob"]).values():
        pod = group["template"]["spec"]
        assert pod["serviceAccountName"] == account
        assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] > 0
        for container in pod["containers"]:
            assert not container["securityContext"]["allowPrivilegeEscalation"]
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_an_overlay_is_valid_and_names_image_identity_and_spot_machines(
    overlay: dict[str, Any],
) -> None:
    for manifest in overlay.values():
        validate(manifest)
    job, account = overlay["RayJob"], overlay["ServiceAccount"]
    assert len(account["metadata"]["annotations"]) == 1
    for name, group in groups(job).items():
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert container["image"].endswith("/instructdiff:1")
        spot = any("spot" in f"{each}".lower() for each in pod.get("nodeSelector", {}).items())
        assert spot == (name != "head")
    gpu = groups(job)["gpu"]
    assert gpu["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "8"
    assert gpu["labels"] == {MACHINE_LABEL: GPU_MACHINE}


def test_the_command_of_an_overlay_is_one(overlay: dict[str, Any]) -> None:
    python, job, *settings = shlex.split(overlay["RayJob"]["spec"]["entrypoint"])
    assert python == "python"
    assert (ROOT / job.removeprefix("/opt/instructdiff/")).is_file()
    config = composed("config", *settings)
    assert config.cluster.name == "large"
    assert config.storage.split("://")[0] in ("s3", "gs")
