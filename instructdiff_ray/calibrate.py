"""Calibrate: fine-tune the base model lightly, with Ray Train and the transformers Trainer.

Full-parameter SFT with loss on the responses only (paper, §4.1): AdamW, cosine decay, a share of
the steps as learning-rate warm-up, gradient clipping.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pyarrow as pa

from instructdiff_ray.config import Config
from instructdiff_ray.models import Model
from instructdiff_ray.pool import Pool, pool_rows
from instructdiff_ray.progress import Progress
from instructdiff_ray.rendering import Rendering
from instructdiff_ray.resources import TrainResources
from instructdiff_ray.storage import Artifact, Finished, Storage, make_key

VERSION = 2  # of what this stage computes; raise it when the same input gives another model


def model_artifact(
    config: Config, base: Model, sample_ids: list[str], storage: Storage
) -> tuple[Artifact, dict[str, Any]]:
    """Where the model calibrated on these samples is or will be, and what its key is made of."""
    hyper = asdict(config.calibrate)
    # Neither changes what is learned: α only chose the samples, checkpointing only saves memory.
    for name in ("ratio", "gradient_checkpointing", "max_length"):
        del hyper[name]
    inputs = {
        "version": VERSION,
        "base": base.identity,
        "rendering": Rendering.of(config, base).inputs(),
        "samples": make_key(ids=sorted(sample_ids)),
        "hyper_parameters": hyper,
        "precision": config.cluster.precision,
        "seed": config.seed,
    }
    return storage.artifact("models", make_key(**inputs)), inputs


def calibrated_model(base: Model, finished: Finished, key: str) -> Model:
    """The model of a finished artifact."""
    # The key says what was trained, the weights which training it was: on GPUs no two give the same
    # to the last bit, and scores of two must not be mixed.
    weights = finished.info["weights"]
    return replace(
        base,
        path=finished.folder.sub("model").path,
        revision=None,
        identity=f"{key}/{weights}",
        digest=weights,
    )


def calibrate(
    config: Config,
    pool: Pool,
    base: Model,
    sample_ids: list[str],
    storage: Storage,
    progress: Progress,
) -> Model:
    """The base model fine-tuned on these samples of the pool, from storage or trained now."""
    artifact, inputs = model_artifact(config, base, sample_ids, storage)
    checkpoints = _checkpoints(artifact.key, config.cluster.train, storage)
    if finished := artifact.finished():
        checkpoints.home.delete()  # of a run that died when it had just finished
        return calibrated_model(base, finished, artifact.key)
    # Imported here: the Trainer takes seconds to import, and a finished model needs none.
    from instructdiff_ray.training import TrainTask, fit

    with artifact.attempt() as attempt, progress.stage("calibrate", "steps") as stage:
        scratch = attempt.folder.sub("scratch")
        rows = pool_rows(pool, sample_ids, ["sample_id", "parts"])
        scratch.write_table("train.parquet", pa.concat_tables(rows).sort_by("sample_id"))
        task = TrainTask(
            model=base,
            rendering=Rendering.of(config, base),
            calibrate=config.calibrate,
            resources=config.cluster.train,
            precision=config.cluster.precision,
            seed=config.seed,
            samples=scratch,
            target=attempt.folder.sub("model"),
            checkpoints=checkpoints,
        )
        weights = fit(task, stage)
        scratch.delete()
        finished = attempt.finish(inputs, {"samples": len(sample_ids), "weights": weights})
        checkpoints.home.delete()
        return calibrated_model(base, finished, artifact.key)


def _checkpoints(key: str, resources: TrainResources, storage: Storage) -> Artifact:
    """Where a training leaves its checkpoints; they serve as many workers as wrote them."""
    layout = {"workers": resources.workers, "fsdp": resources.fsdp}
    return storage.artifact("checkpoints", make_key(model=key, **layout))
