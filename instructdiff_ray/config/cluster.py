"""Where the work runs: `cluster`. Of it only `precision` changes results, and is in their keys."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field

from instructdiff_ray.errors import require


@dataclass
class TrainResources:
    """Ray Train workers.

    workers: processes that train.
    gpus_per_worker: 1, or 0 to train on CPUs.
    tokens_per_device: tokens in one forward and backward pass; the accumulation steps follow.
    fsdp: shard model and optimizer over the workers; None does when they don't fit one device.
    checkpoint_minutes: time between two checkpoints, and so what a crash may cost; 0: after every
        step.
    report_to: trackers that are told loss and learning rate: tensorboard, wandb, mlflow.
    """

    workers: int = 1
    gpus_per_worker: float = 0
    tokens_per_device: int = 8192
    fsdp: bool | None = None
    checkpoint_minutes: float = 10
    report_to: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        require(self.workers >= 1, f"cluster.train.workers={self.workers} must be ≥ 1")
        require(
            self.gpus_per_worker in (0, 1),
            f"cluster.train.gpus_per_worker={self.gpus_per_worker} must be 0 or 1;"
            " raise cluster.train.workers for more GPUs",
        )
        require(
            self.tokens_per_device >= 1,
            f"cluster.train.tokens_per_device={self.tokens_per_device} must be ≥ 1",
        )
        require(
            self.checkpoint_minutes >= 0,
            f"cluster.train.checkpoint_minutes={self.checkpoint_minutes} must be 0 or more",
        )
        require(
            not (self.fsdp and self.workers == 1),
            "cluster.train.fsdp=true needs cluster.train.workers of 2 or more",
        )


@dataclass
class ScoreResources:
    """Ray Data scoring actors: as many as the cluster holds between the two bounds.

    min_actors: with which scoring begins, and which it waits for.
    max_actors: no more than these are started.
    gpus_per_actor: a fraction lets actors share a GPU, several split each model's layers over
        them; 0 scores on CPU. None: as few as hold one model, and `max_actors` bounds the GPUs of
        all actors.
    models_per_actor: copies of weights that an actor holds: with 1, base and calibrated model are
        scored one after the other; None: two, where they fit.
    tokens_per_batch: of one forward pass at most; None: as many as the device's memory holds and
        make it faster.
    """

    min_actors: int = 1
    max_actors: int = 1
    gpus_per_actor: float | None = 0
    models_per_actor: int | None = None
    tokens_per_batch: int | None = None

    def __post_init__(self) -> None:
        require(
            1 <= self.min_actors <= self.max_actors,
            f"cluster.score.min_actors={self.min_actors} must be between 1 and"
            f" cluster.score.max_actors={self.max_actors}",
        )
        gpus = self.gpus_per_actor
        require(
            gpus is None or 0 <= gpus <= 1 or math.isfinite(gpus) and gpus == int(gpus) > 1,
            f"cluster.score.gpus_per_actor={gpus} must be 0, a fraction of one GPU, or a whole"
            " number of them",
        )
        require(
            self.models_per_actor in (None, 1, 2),
            f"cluster.score.models_per_actor={self.models_per_actor} must be 1 or 2",
        )
        require(
            self.tokens_per_batch is None or self.tokens_per_batch >= 1,
            f"cluster.score.tokens_per_batch={self.tokens_per_batch} must be ≥ 1",
        )

    @property
    def least_gpus(self) -> float:
        """GPUs that an actor has at least."""
        return 1 if self.gpus_per_actor is None else self.gpus_per_actor


@dataclass
class ClusterConfig:
    """Where the work runs.

    name: under which speeds are noted for plans.
    address: a running Ray cluster; None joins RAY_ADDRESS, or starts Ray on this machine.
    precision: fp32 | bf16, of the models' matrix products; softmax and entropy are always fp32.
        `auto` takes bf16 where the hardware multiplies it faster.
    patience_hours: after which a run ends that finishes nothing: it waits for machines, say.
    """

    name: str = "local"
    address: str | None = None
    precision: str = "fp32"
    patience_hours: float = 24
    train: TrainResources = field(default_factory=TrainResources)
    score: ScoreResources = field(default_factory=ScoreResources)

    def __post_init__(self) -> None:
        require(
            self.precision in ("auto", "fp32", "bf16"),
            f"cluster.precision={self.precision} is not known; use fp32, bf16 or auto",
        )
        require(
            0 < self.patience_hours < math.inf,
            f"cluster.patience_hours={self.patience_hours} must be above 0",
        )

    @property
    def joined(self) -> str | None:
        """The address of the Ray cluster that is joined; None: Ray is started on this machine."""
        return self.address or os.environ.get("RAY_ADDRESS")
