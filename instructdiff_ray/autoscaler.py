"""What a run waits for, and what Ray's autoscaler says of it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

import ray
from ray.autoscaler.v2.schema import ClusterStatus
from ray.autoscaler.v2.sdk import get_cluster_status
from ray.exceptions import RayError
from ray.experimental.internal_kv import _internal_kv_get

# Where the first of Ray's two autoscalers leaves its report, which `ray status` reads too.
REPORT = "__autoscaling_status"
# Of what a provider of machines says; it may be a page.
MOST_CHARACTERS = 300
KINDS = ("GPU", "CPU")


def waiting_line() -> str | None:
    """What the cluster's work waits for at this moment, and what the autoscaler does about it, in
    one line; None where nothing waits, or Ray does not run yet or does not answer."""
    if not ray.is_initialized():
        return None
    try:
        status = get_cluster_status(ray.get_runtime_context().gcs_address)
        report = json.loads(_internal_kv_get(REPORT) or b"{}")
    # What Ray's own reading of the status raises, too: without an answer a run waits as well.
    except (RayError, ValueError, RuntimeError, AssertionError):
        return None
    return describe_wait(status, report.get("autoscaler_report") or {})


def describe_wait(status: ClusterStatus, report: Mapping[str, Any]) -> str | None:
    """The line. report: of the first autoscaler, empty where the second runs, or none."""
    wanted = _wanted(status)
    kind = next((kind for kind in KINDS if wanted[kind]), None)
    if kind is None:
        return None
    amounts = (status.total_resources(), status.available_resources())
    total, free = (of_kind.get(kind, 0.0) for of_kind in amounts)
    count = f"{wanted[kind]:g} {kind}{'s' * (wanted[kind] != 1)}"
    says = [*_launches(status), *_report_lines(report)]
    answer = "; ".join(dict.fromkeys(says)) or (
        "no machine is on its way (where an autoscaler runs: none of its machines has what is asked"
        " for, or as many as it may start are there)"
    )
    return (
        f"waiting for {count}: the cluster has {total:g}, {free:g} of them free; the autoscaler"
        f" says: {answer}"
    )


def _wanted(status: ClusterStatus) -> dict[str, float]:
    """Resources that tasks, actors and placement groups wait for."""
    demands, wanted = status.resource_demands, dict.fromkeys(KINDS, 0.0)
    for demand in (*demands.placement_group_demand, *demands.ray_task_actor_demand):
        for request in demand.bundles_by_count:
            for name in KINDS:
                wanted[name] += request.count * request.bundle.get(name, 0)
    return wanted


def _launches(status: ClusterStatus) -> list[str]:
    """What the second autoscaler has asked its provider for, and what came of it."""
    starting = Counter[str]()
    for launch in status.pending_launches:
        starting[launch.ray_node_type_name] += launch.count
    for node in status.pending_nodes:
        starting[node.ray_node_type_name] += 1
    failed = {launch.ray_node_type_name: launch.details or "" for launch in status.failed_launches}
    return [*_starting(starting), *(_failed(name, why) for name, why in failed.items())]


def _report_lines(report: Mapping[str, Any]) -> list[str]:
    """The same of the first."""
    starting = Counter[str](report.get("pending_launches") or {})
    starting.update(kind for _, kind, _ in report.get("pending_nodes") or ())
    summary = report.get("node_availability_summary") or {}
    unavailable = {
        name: record["unavailable_node_information"]
        for name, record in summary.get("node_availabilities", {}).items()
        if not record["is_available"] and record.get("unavailable_node_information")
    }
    return [
        *_starting(starting),
        *(
            _failed(name, f"{why['category']}: {why['description']}")
            for name, why in unavailable.items()
        ),
    ]


def _starting(counts: Mapping[str, int]) -> list[str]:
    return [f"starting {count} {name}" for name, count in counts.items() if count]


def _failed(name: str, why: str) -> str:
    text = " ".join(why.split())
    if len(text) > MOST_CHARACTERS:
        text = text[:MOST_CHARACTERS] + "…"
    return f"{name} could not be started" + (f" ({text})" if text else "")
