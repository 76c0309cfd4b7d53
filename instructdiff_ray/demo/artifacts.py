"""The demo's pool and model as artifacts: made once a storage, by the project itself, offline."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable

from instructdiff_ray.demo.pool import prose, write_pool
from instructdiff_ray.progress import Progress, Stage
from instructdiff_ray.storage import Artifact, Storage, make_key

DEMO = "demo"  # stands for them in data.path and model.base
VERSION = 1  # of both generators; raise it when they make something else


def demo_pool(storage: Storage, progress: Progress) -> str:
    """Path of the demo's JSONL file: varied pairs of four domains, some rows bad on purpose."""
    artifact, inputs = _place(storage, "demo-pool")
    finished = artifact.finished()
    if finished is None:
        with artifact.attempt() as attempt, progress.stage("demo pool", "files") as stage:
            with tempfile.TemporaryDirectory() as folder:
                write_pool(os.path.join(folder, "pool.jsonl"))
                attempt.folder.upload(folder)
            stage.add(1)
            finished = attempt.finish(inputs, {})
    return finished.folder.sub("pool.jsonl").path


def demo_model(storage: Storage, progress: Progress) -> str:
    """Folder of the demo's language model, which has read prose and code but no instructions."""
    artifact, inputs = _place(storage, "demo-model")
    finished = artifact.finished()
    if finished is None:
        # Imported here: it takes seconds, and only the first run trains.
        from instructdiff_ray.demo.model import train_model

        with artifact.attempt() as attempt, progress.stage("demo model", "steps") as stage:
            with tempfile.TemporaryDirectory() as folder:
                train_model(folder, prose(), report=_show(stage))
                attempt.folder.upload(folder)
            finished = attempt.finish(inputs, {})
    return finished.folder.path


def _show(stage: Stage) -> Callable[[int, int, float], None]:
    def report(step: int, steps: int, loss: float) -> None:
        stage.total = steps
        stage.add(step - stage.count, note=f"loss {loss:.2f}")

    return report


def _place(storage: Storage, kind: str) -> tuple[Artifact, dict[str, int]]:
    inputs = {"version": VERSION}
    return storage.artifact(kind, make_key(**inputs)), inputs
