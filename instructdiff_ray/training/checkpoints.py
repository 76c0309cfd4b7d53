"""Checkpoints of a training: each an artifact, from which whoever trains the same goes on.

It makes no difference who died, a worker, its machine or the driver: the next attempt at the same
model finds the last finished checkpoint by its key, and loses what came after it. Each worker
uploads what it saved, beside the training.

Ray Train keeps checkpoints too, but its list of them is one file that is written in place: a disk
that is full, or a driver that is killed, at that moment leaves none that can be read.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pickle import UnpicklingError
from typing import Any

import torch.distributed as dist
from safetensors import SafetensorError
from torch.distributed.checkpoint.api import CheckpointException
from transformers import TrainerCallback

from instructdiff_ray.errors import UnreadableCheckpoint, UserError, user_error_in
from instructdiff_ray.storage.artifacts import ATTEMPT, Artifact, ArtifactWriter
from instructdiff_ray.storage.local_copy import temporary_copy

UPLOADING, UPLOADED, FAILED = range(3)
# What is raised by those who read a checkpoint: torch, safetensors, pickle, the Trainer.
UNREADABLE = (
    *(AttributeError, EOFError, LookupError, RuntimeError, TypeError, ValueError),
    *(CheckpointException, SafetensorError, UnpicklingError),
)


class KeepCheckpoints(TrainerCallback):
    """Has the Trainer save now and then, and puts what it saved into storage.

    checkpoints: the artifact whose latest version is the checkpoint; every_s: seconds between two.
    When the next is due and the last is still being uploaded, the training waits for it.
    """

    def __init__(self, checkpoints: Artifact, every_s: float) -> None:
        self.checkpoints = checkpoints
        self.every_s = every_s
        self.saved_at = time.monotonic()
        self.uploader = ThreadPoolExecutor(1)
        self.upload: Future[None] | None = None
        self.writer: ArtifactWriter | None = None
        self.previous: ArtifactWriter | None = None
        self.step = 0
        self.began = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.began = True  # so what was to be resumed was loaded

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        due = time.monotonic() - self.saved_at >= self.every_s
        if self.upload is not None:
            self._close(wait=due)
        # After the last step the model itself is written.
        due &= state.global_step < state.max_steps and self.upload is None
        if name := first_rank_says(f"{ATTEMPT}{uuid.uuid4().hex[:12]}" if due else None):
            self.writer = self.checkpoints.writer_at(name)
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Each worker begins to upload what it wrote: its shards, its random state."""
        assert self.writer is not None
        self.step = state.global_step
        local = os.path.join(args.output_dir, f"checkpoint-{self.step}")
        self.upload = self.uploader.submit(self._upload, self.writer, local)
        self.saved_at = time.monotonic()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.upload is not None:
            self._close(wait=True)

    @staticmethod
    def _upload(writer: ArtifactWriter, local: str) -> None:
        try:
            writer.folder.upload(local)
        finally:
            shutil.rmtree(local)

    def _close(self, wait: bool) -> None:
        """The checkpoint is finished when all workers have uploaded; rank 0 says so in storage. One
        that can't be written, for a disk is full, is given up, and the one before it stays."""
        assert self.upload is not None and self.writer is not None
        done = wait or self.upload.done()
        error = self.upload.exception() if done else None
        if error is not None and not isinstance(error, OSError):
            raise error
        states = all_ranks_say(UPLOADING if not done else FAILED if error else UPLOADED)
        if UPLOADING in states:
            return
        if error:
            print(f"no checkpoint of step {self.step}: {error}", file=sys.stderr, flush=True)
        if first_rank():
            try:
                self._finish(self.writer, whole=FAILED not in states)
            except OSError as failure:
                print(f"no checkpoint of step {self.step}: {failure}", file=sys.stderr, flush=True)
        self.upload = self.writer = None

    def _finish(self, writer: ArtifactWriter, whole: bool) -> None:
        if not whole:
            writer.folder.delete()
            return
        writer.finish({"key": self.checkpoints.key}, {"step": self.step})
        previous, self.previous = self.previous, writer
        if previous:
            previous.folder.delete()


@contextmanager
def last_checkpoint(checkpoints: Artifact) -> Iterator[str | None]:
    """The last finished checkpoint, on this machine while the block runs; None: there is none."""
    # Another run may finish one meanwhile; all workers load the first one's.
    finished = first_rank_says(checkpoints.finished())
    if finished is None:
        yield None
        return
    with temporary_copy(finished.folder.path) as folder:
        yield folder


@contextmanager
def naming_the_checkpoint(folder: str | None, keeper: KeepCheckpoints) -> Iterator[None]:
    """What is raised while a checkpoint is loaded is a UserError that names it.

    It is not deleted: it may be good, and what failed another worker, a disk or the memory. So with
    other workers it is an UnreadableCheckpoint, after which all are started again.
    """
    try:
        yield
    except UNREADABLE as error:
        if folder is None or keeper.began or user_error_in(error):
            raise
        line = str(error).strip().split("\n")[0]
        kind = UserError if alone() else UnreadableCheckpoint
        raise kind(
            f"the checkpoints in {keeper.checkpoints.home.path} can't be loaded"
            f" ({type(error).__name__}: {line}); if no worker died, delete that folder, and the"
            " training begins anew"
        ) from error


def alone() -> bool:
    """Whether this is the only worker."""
    return not dist.is_initialized() or dist.get_world_size() == 1


def first_rank() -> bool:
    """Whether this is worker 0."""
    return not dist.is_initialized() or dist.get_rank() == 0


def first_rank_says(value: Any) -> Any:
    """What worker 0 holds, on every worker."""
    if alone():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def all_ranks_say(value: Any) -> list[Any]:
    """What each worker holds, on every worker."""
    if alone():
        return [value]
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
