"""The demo's pool and model as artifacts: made once a storage, by the project itself, offline."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable

from instructdiff_ray.demo.pool import prose, write_pool
from instructdiff_ray.progress import Progress, Stage
from instructdiff_ray.storage.artifacts import FinishedArtifact, Storage, make_key

DEMO = "demo"  # stands for them in data.path and model.base
VERSION = 1  # of both generators; raise it when they make something else


def demo_pool(storage: Storage, progress: Progress) -> str:
    """Path of the demo's JSONL file: varied pairs of four domains, some rows bad on purpose."""

    def make(folder: str, stage: Stage) -> None:
        write_pool(os.path.join(folder, "pool.jsonl"))
        stage.add(1)

    finished = _made_once(storage, "demo-pool", "files", make, progress)
    return finished.folder.sub("pool.jsonl").path


def demo_model(storage: Storage, progress: Progress) -> str:
    """Folder of the demo's language model, which has read prose and code but no instructions."""

    def make(folder: str, stage: Stage) -> None:
        # Imported here: it takes seconds, and only the first run trains.
        from instructdiff_ray.demo.model import train_model

        train_model(folder, prose(), report=_show(stage))

    return _made_once(storage, "demo-model", "steps", make, progress).folder.path


def _show(stage: Stage) -> Callable[[int, int, float], None]:
    def report(step: int, steps: int, loss: float) -> None:
        stage.total = steps
        stage.add(step - stage.count, note=f"loss {loss:.2f}")

    return report


def _made_once(
    storage: Storage, kind: str, unit: str, make: Callable[[str, Stage], None], progress: Progress
) -> FinishedArtifact:
    """make: fills a local folder, whose files become the artifact's."""
    inputs = {"version": VERSION}
    artifact = storage.artifact(kind, make_key(**inputs))
    with artifact.lock(progress.say) as finished:
        if finished is None:
            name = kind.replace("-", " ")
            with artifact.writer() as writer, progress.stage(name, unit) as stage:
                with tempfile.TemporaryDirectory() as folder:
                    make(folder, stage)
                    writer.folder.upload(folder)
                finished = writer.finish(inputs, {})
    return finished
