from __future__ import annotations

import pytest
from ray.data import DataContext

from instructdiff_ray.config.cluster import ClusterConfig, ScoreResources, TrainResources
from instructdiff_ray.errors import UserError
from instructdiff_ray.resources import (
    MACHINE_LABEL,
    SINGLE_MACHINE,
    machines_for,
    missing_gpus,
    require_gpus,
)

pytestmark = pytest.mark.usefixtures("ray_session")
NODE = ClusterConfig(
    train=TrainResources(workers=8, gpus_per_worker=1),
    score=ScoreResources(min_actors=4, max_actors=8, gpus_per_actor=0.5),
)


def test_gpus_that_can_never_come_are_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 8.0, "GPU": 2.0})
    DataContext.get_current().set_config(SINGLE_MACHINE, False)
    require_gpus(NODE, "train")  # on a cluster, machines may come
    DataContext.get_current().set_config(SINGLE_MACHINE, True)
    try:
        require_gpus(ClusterConfig(), "train")
        require_gpus(NODE, "score")
        line = "cluster.train.workers=8 asks for 8 GPUs and this machine has 2; take cluster=local"
        with pytest.raises(UserError, match=line):
            require_gpus(NODE, "train")
        monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 8.0})
        found = missing_gpus(NODE, "score")
        assert (
            found and "cluster.score.min_actors=4 asks for 2 GPUs and this machine has 0" in found
        )
    finally:
        DataContext.get_current().remove_config(SINGLE_MACHINE)


def node(label: str | None, cpus: float = 4, alive: bool = True) -> dict:
    labels = {} if label is None else {MACHINE_LABEL: label}
    return {"Alive": alive, "Labels": labels, "Resources": {"CPU": cpus}}


@pytest.mark.parametrize(
    ("machines", "kept_off"),
    [
        ([node("head", cpus=0)], True),  # others can be added
        ([node("head", cpus=0), node("gpu")], True),
        ([node(None), node("gpu")], True),
        ([node("cpu")], True),
        ([node(None), node(None)], False),  # a cluster without labels: as if there were none
        ([node("gpu")], False),  # it would wait for ever
        ([node(None, cpus=0), node("gpu")], False),
        ([node("cpu", alive=False), node("gpu")], False),
    ],
)
def test_work_without_gpus_keeps_off_their_machines_where_there_are_others(
    monkeypatch: pytest.MonkeyPatch, machines: list[dict], kept_off: bool
) -> None:
    monkeypatch.setattr("ray.nodes", lambda: machines)
    assert machines_for(gpus=0) == ({MACHINE_LABEL: "!gpu"} if kept_off else {})
    assert machines_for(gpus=1) == {}
