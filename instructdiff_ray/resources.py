"""Whether what a stage asks for can ever be there."""

from __future__ import annotations

import ray
from ray.data import DataContext

from instructdiff_ray.config.cluster import ClusterConfig
from instructdiff_ray.errors import UserError

# Set in Ray Data's context where Ray was started for this command: no machine will come to help.
SINGLE_MACHINE = "instructdiff_single_machine"


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
