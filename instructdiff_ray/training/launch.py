"""Training with Ray Train, as the driver sees it; what a worker does is in worker.py."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ray
from ray.exceptions import RayActorError
from ray.train import (
    ControllerError,
    FailureConfig,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
    UserCallback,
)
from ray.train.torch import TorchTrainer

from instructdiff_ray.engine.device import require_gpu
from instructdiff_ray.errors import UnreadableCheckpoint, UserError, user_error_in
from instructdiff_ray.pool.tasks import results
from instructdiff_ray.progress import Stage
from instructdiff_ray.resources import machines_for, patience_s
from instructdiff_ray.training.task import TRAINED, TrainTask

# Times that a worker may die or fail before the training is given up; machines that are taken back
# are not counted. As often may a start of all of them fail.
MAX_FAILURES = 3


def fit(task: TrainTask, stage: Stage) -> dict[str, Any]:
    """Train, leave the model in `task.target` and give the identity of its `weights`, how its
    `batches` were laid out, the `tokens` of all epochs and the seconds (`train_s`) that these took.
    Raises UserError where the device will not hold the training, or torch can't use it.

    The stage counts optimizer steps. A worker that dies is started again, with all others, from the
    last checkpoint.
    """
    gpus = task.resources.gpus_per_worker
    if patience := patience_s():
        # A start that timed out counts as a failure of Ray Train's controller, which reads this.
        os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(patience / (1 + MAX_FAILURES))
    if gpus:  # before Ray Train, whose workers meet by way of their GPUs before they do anything
        check = ray.remote(num_cpus=1, num_gpus=gpus, max_calls=1)(require_gpu)
        results([check.remote(task.precision)])
    with _mailbox(stage) as mailbox:
        trainer = TorchTrainer(
            train_worker,
            train_loop_config={"task": task, "mailbox": mailbox},
            scaling_config=ScalingConfig(  # type: ignore[call-arg]  # typed as version 1's
                num_workers=task.resources.workers,
                use_gpu=bool(gpus),
                resources_per_worker={"CPU": 1, **({"GPU": gpus} if gpus else {})},
                label_selector=machines_for(gpus) or None,
            ),
            run_config=RunConfig(
                name=task.name,
                storage_path=task.scratch.path,
                failure_config=FailureConfig(  # type: ignore[call-arg]  # annotated as V1's
                    max_failures=MAX_FAILURES, controller_failure_limit=MAX_FAILURES
                ),
                callbacks=[EndOnUserError()],  # type: ignore[list-item]  # typed as version 1's
            ),
        )
        try:
            trainer.fit()
        except TrainingFailedError as error:
            # What the callback raised comes as it is, what workers raised as text.
            ended_by = error.controller_failure if isinstance(error, ControllerError) else error
            if isinstance(ended_by, UserError):
                raise ended_by from None
            if user_error := user_error_in(error):
                raise user_error from error
            raise
    trained: dict[str, Any] = json.loads(task.scratch.read_bytes(TRAINED) or b"")
    return trained


class EndOnUserError(UserCallback):
    """Ends a training where a worker raises a UserError, which every other attempt would raise too.

    Ray Train would start the workers again, as often as any that fail.
    """

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        for error in worker_exceptions.values():
            if isinstance(error, UserError) and not isinstance(error, UnreadableCheckpoint):
                raise error


def train_worker(config: dict[str, Any]) -> None:
    """One Ray Train worker. The Trainer takes seconds to import: here, where it is needed, and not
    in the driver and Ray's controller, which come by this module too."""
    from instructdiff_ray.training.worker import train

    train(config["task"], config["mailbox"])


@ray.remote(num_cpus=0)
class Mailbox:
    """Holds the last thing that a worker said."""

    def __init__(self) -> None:
        self.value: Any = None

    def put(self, value: Any) -> None:
        """Replace what is held."""
        self.value = value

    def get(self) -> Any:
        """What was put last; None at first."""
        return self.value


@contextmanager
def _mailbox(stage: Stage) -> Iterator[Any]:
    """A mailbox that is looked into now and then while the block runs, and once more at its end."""
    mailbox = Mailbox.remote()  # type: ignore[attr-defined]
    done = threading.Event()

    def look() -> None:
        # Only news: that its machine was taken away must not fail a training that goes on.
        with suppress(RayActorError):
            if value := ray.get(mailbox.get.remote()):
                step, stage.total, loss = value
                stage.add(step - stage.count, note=f"loss {loss:.3f}")

    def watch() -> None:
        while not done.wait(0.5):
            look()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield mailbox
    finally:
        done.set()
        watcher.join()
        look()
        ray.kill(mailbox)
