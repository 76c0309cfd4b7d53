"""Whether what a stage asks for can ever be there, and which machines its work keeps off."""

from __future__ import annotations

import ray
from ray.data import DataContext

from instructdiff_ray.config.cluster import ClusterConfig
from instructdiff_ray.errors import UserError

# Set in Ray Data's context where Ray was started for this command: no machine will come to help.
SINGLE_MACHINE = "instructdiff_single_machine"

# A label of machines (docs/cluster.md): GPU on those whose CPUs are for training and scoring alone;
# HEAD on the head of a cluster that has, or can add, machines without GPUs for all other work.
MACHINE_LABEL, GPU_MACHINE, HEAD_MACHINE = "instructdiff-machine", "gpu", "head"


def machines_for(gpus: float) -> dict[str, str]:
    """The label selector of work that takes so many GPUs.

    Work that takes none keeps off the machines that are labelled for work that does, where there
    are others. Where there are not, the selector is empty, for what no machine may do would wait
    for ever. Of machines that could be added but are not there Ray says nothing; the head's label
    does.
    """
    cpus: dict[str | None, float] = {}
    for machine in ray.nodes():
        if machine["Alive"]:
            label = machine["Labels"].get(MACHINE_LABEL)
            cpus[label] = cpus.get(label, 0) + machine["Resources"].get("CPU", 0)
    others = HEAD_MACHINE in cpus or any(cpus[label] for label in cpus.keys() - {GPU_MACHINE})
    labelled = bool(cpus.keys() - {None})
    return {MACHINE_LABEL: f"!{GPU_MACHINE}"} if not gpus and labelled and others else {}


def patience_s() -> float | None:
    """Seconds without progress after which a run ends, as Ray Data knows them; None: no end."""
    seconds = DataContext.get_current().execution_no_progress_timeout_s
    return seconds if seconds > 0 else None


def require_gpus(cluster: ClusterConfig, stage: str) -> None:
    """Raises UserError where the stage, train or score, asks for more GPUs than there will be."""
    if line := missing_gpus(cluster, stage):
        raise UserError(line)


def missing_gpus(cluster: ClusterConfig, stage: str) -> str | None:
    """The line that says so where Ray runs on this machine alone, and it has fewer GPUs than the
    stage, train or score, asks for: they would be waited for in vain."""
    if not DataContext.get_current().get_config(SINGLE_MACHINE, False):
        return None
    if stage == "train":
        count, name = cluster.train.workers, "workers"
        gpus = count * cluster.train.gpus_per_worker
    else:
        count, name = cluster.score.min_actors, "min_actors"
        gpus = count * cluster.score.least_gpus
    there = ray.cluster_resources().get("GPU", 0)
    if gpus <= there:
        return None
    return (
        f"cluster.{stage}.{name}={count} asks for {gpus:g} GPU{'s' * (gpus > 1)} and this machine"
        f" has {there:g}; take cluster=local, or name a cluster that has them: cluster.address=… or"
        " RAY_ADDRESS"
    )
