"""Ray for one command, where it runs already."""

from __future__ import annotations

import ray
import ray.data

from instructdiff_ray.commands.ray_start import start_ray
from instructdiff_ray.config.cluster import ClusterConfig, TrainResources
from instructdiff_ray.resources import SINGLE_MACHINE, missing_gpus


def test_gpus_are_not_waited_for_where_this_process_had_started_ray(ray_session: None) -> None:
    context = ray.data.DataContext.get_current()
    before = context.get_config(SINGLE_MACHINE, False)
    context.set_config(SINGLE_MACHINE, False)
    try:
        more = int(ray.cluster_resources().get("GPU", 0)) + 1
        cluster = ClusterConfig(train=TrainResources(workers=more, gpus_per_worker=1))
        assert missing_gpus(cluster, "train") is None
        start_ray(cluster)
        assert f"asks for {more} GPUs" in str(missing_gpus(cluster, "train"))
    finally:
        context.set_config(SINGLE_MACHINE, before)
