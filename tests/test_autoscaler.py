"""What is said while a run waits for machines; with a cluster that waits: test_submit.py."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest
import ray
from ray.autoscaler._private.autoscaler import AutoscalerSummary
from ray.autoscaler._private.node_provider_availability_tracker import (
    NodeAvailabilityRecord,
    NodeAvailabilitySummary,
    UnavailableNodeInformation,
)
from ray.autoscaler.v2.schema import (
    ClusterStatus,
    LaunchRequest,
    PlacementGroupResourceDemand,
    RayTaskActorDemand,
    ResourceDemandSummary,
    ResourceRequestByCount,
    ResourceUsage,
)

from instructdiff_ray.autoscaler import describe_wait, waiting_line

GPUS = [ResourceUsage("GPU", total=8, used=6), ResourceUsage("CPU", total=96, used=8)]


def status(**fields: Any) -> ClusterStatus:
    """A training of eight workers waits, and a task."""
    eight = [ResourceRequestByCount({"GPU": 1.0, "CPU": 1.0}, 8)]
    demands = ResourceDemandSummary(
        placement_group_demand=[PlacementGroupResourceDemand(eight, details="")],
        ray_task_actor_demand=[RayTaskActorDemand([ResourceRequestByCount({"CPU": 1.0}, 1)])],
    )
    return ClusterStatus(**{"resource_demands": demands, **fields})


def launch(state: str, details: str | None = None) -> LaunchRequest:
    return LaunchRequest("p5", "gpu_worker", 2, LaunchRequest.Status[state], 0, details=details)


def test_where_nothing_waits_nothing_is_said() -> None:
    assert describe_wait(ClusterStatus(), {}) is None


def test_it_says_what_is_there_and_what_the_autoscaler_does() -> None:
    line = describe_wait(status(pending_launches=[launch("PENDING")]), {})
    assert line == (
        "waiting for 8 GPUs: the cluster has 0, 0 of them free; the autoscaler says: starting 2"
        " gpu_worker"
    )
    line = describe_wait(status(cluster_resource_usage=GPUS), {})
    assert line is not None and "the cluster has 8, 2 of them free" in line
    assert "says: no machine is on its way" in line


def test_a_provider_that_has_no_machine_is_quoted_in_one_line() -> None:
    why = "InsufficientInstanceCapacity:\n no p5.48xlarge in us-east-1a" + " now" * 500
    line = describe_wait(status(failed_launches=[launch("FAILED", why)]), {})
    assert line is not None and "\n" not in line and len(line) < 600
    assert "gpu_worker could not be started (InsufficientInstanceCapacity: no p5.48xlarge" in line


def test_the_first_autoscalers_report_says_the_same() -> None:
    why = UnavailableNodeInformation("InsufficientInstanceCapacity", "no p5 here")
    record = NodeAvailabilityRecord("gpu_worker", False, 0.0, why)
    report = AutoscalerSummary(
        active_nodes={},
        idle_nodes={},
        pending_nodes=[("10.0.0.1", "cpu_worker", "waiting-for-ssh")],
        pending_launches={"cpu_worker": 1},
        failed_nodes=[],
        node_availability_summary=NodeAvailabilitySummary({"gpu_worker": record}),
    )
    line = describe_wait(status(), asdict(report))
    assert line is not None and line.endswith(
        "says: starting 2 cpu_worker; gpu_worker could not be started"
        " (InsufficientInstanceCapacity: no p5 here)"
    )


def test_it_is_asked_of_a_real_cluster(ray_session: None) -> None:
    @ray.remote(num_gpus=3)
    def never() -> None: ...

    assert waiting_line() is None
    reference = never.remote()
    try:
        while (line := waiting_line()) is None:  # the demand is told to the cluster now and then
            pass
        assert line.startswith("waiting for 3 GPUs: the cluster has 1, 1 of them free")
    finally:
        ray.cancel(reference)
        with pytest.raises(ray.exceptions.TaskCancelledError):
            ray.get(reference)
