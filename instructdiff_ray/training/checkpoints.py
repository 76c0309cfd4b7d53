"""Checkpoints of a training: each an artifact, from which whoever trains the same goes on.

It makes no difference who died, a worker, its machine or the driver: the next attempt at the same
model finds the last finished checkpoint by its key, and loses what came after it.
"""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
from transformers import TrainerCallback

from instructdiff_ray.storage.artifacts import ATTEMPT, MANIFEST, Artifact, ArtifactWriter


class KeepCheckpoints(TrainerCallback):
    """Has the Trainer save now and then, and puts what it saved into storage.

    checkpoints: the artifact whose latest version is the checkpoint; every_s: seconds between two.
    """

    def __init__(self, checkpoints: Artifact, every_s: float) -> None:
        self.checkpoints = checkpoints
        self.every_s = every_s
        self.saved_at = time.monotonic()
        self.writer: ArtifactWriter | None = None
        self.previous: ArtifactWriter | None = None
        self.resumed = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.resumed = True  # or nothing was to be resumed

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        # After the last step the model itself is written.
        due = state.global_step < state.max_steps
        due &= time.monotonic() - self.saved_at >= self.every_s
        if name := first_rank_says(f"{ATTEMPT}{uuid.uuid4().hex[:12]}" if due else None):
            self.writer = self.checkpoints.writer_at(name)
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Each worker uploads what it wrote: its shard, its random state; then it is finished."""
        assert self.writer is not None
        local = os.path.join(args.output_dir, f"checkpoint-{state.global_step}")
        self.writer.folder.upload(local)
        shutil.rmtree(local)
        if dist.is_initialized():
            dist.barrier()
        if state.is_world_process_zero:
            self.writer.finish({"key": self.checkpoints.key}, {"step": state.global_step})
            if self.previous:
                self.previous.folder.delete()
        self.previous, self.saved_at = self.writer, time.monotonic()


@contextmanager
def resuming(keeper: KeepCheckpoints) -> Iterator[None]:
    """A checkpoint that can't be loaded is forgotten, so that the next attempt begins anew."""
    try:
        yield
    finally:
        if not keeper.resumed:
            keeper.checkpoints.home.delete(MANIFEST)


def fetch_checkpoint(checkpoints: Artifact, folder: str) -> str | None:
    """The last finished checkpoint, copied below `folder`; None where there is none."""
    finished = checkpoints.finished()
    # Another run may finish one meanwhile; all workers load the first one's.
    finished = first_rank_says(finished)
    if finished is None:
        return None
    local = os.path.join(folder, f"checkpoint-{finished.info['step']}")
    finished.folder.download(local)
    return local


def first_rank_says(value: Any) -> Any:
    """What worker 0 holds, on every worker."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]
