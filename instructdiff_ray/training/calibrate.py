"""Calibrate: fine-tune the base model lightly, with Ray Train and the transformers Trainer.

Full-parameter SFT with loss on the responses only (paper, §4.1): AdamW, cosine decay, a share of
the steps as learning-rate warm-up, gradient clipping.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from importlib.metadata import version
from typing import Any

from instructdiff_ray.config.cluster import TrainResources
from instructdiff_ray.config.run import Config
from instructdiff_ray.models.encoding import EncoderSpec
from instructdiff_ray.models.model import Model
from instructdiff_ray.pool.pool import Pool
from instructdiff_ray.progress import Progress
from instructdiff_ray.resources import require_gpus
from instructdiff_ray.storage.artifacts import Artifact, FinishedArtifact, Storage, make_key
from instructdiff_ray.storage.speeds import Speed, SpeedNote
from instructdiff_ray.training.launch import fit
from instructdiff_ray.training.task import EXAMPLES, TrainTask
from instructdiff_ray.training.training_set import write_examples

VERSION = 2  # of what this stage computes; raise it when the same input gives another model


def model_artifact(
    config: Config, base: Model, sample_ids: list[str], storage: Storage
) -> tuple[Artifact, dict[str, Any]]:
    """Where the model calibrated on these samples is or will be, and what its key is made of."""
    hyper = asdict(config.calibrate)
    # None changes what is learned: the first four only chose the samples (and a repeat differs by
    # these and its seed), checkpointing only saves memory, the length is in the encoding.
    for name in (
        *("ratio", "max_samples", "per_domain", "repeats"),
        *("gradient_checkpointing", "max_length"),
    ):
        del hyper[name]
    if hyper["optimizer"] == "adamw":  # as it was before there was another
        del hyper["optimizer"]
    inputs = {
        "version": VERSION,
        "base": base.identity,
        "rendering": EncoderSpec.of(config, base).key_inputs(),
        "samples": make_key(ids=sorted(sample_ids)),
        "hyper_parameters": hyper,
        "precision": config.cluster.precision,
        "seed": config.seed,
    }
    return storage.artifact("models", make_key(**inputs)), inputs


def calibrated_model(base: Model, finished: FinishedArtifact) -> Model:
    """The model of a finished artifact."""
    weights = finished.info["weights"]
    identity = calibrated_identity(finished.key, weights)
    trained = replace(base, identity=identity, digest=weights)
    folder = finished.folder.sub("model").path
    if finished.info["adapter"]:
        return replace(trained, adapter=folder)
    return replace(trained, path=folder, revision=None)


def calibrated_identity(key: str, weights: str) -> str:
    """The key says what was trained, the weights which training it was: on GPUs no two give the
    same to the last bit, and scores of two must not be mixed."""
    return f"{key}/{weights}"


def calibrate(
    config: Config,
    pool: Pool,
    base: Model,
    sample_ids: list[str],
    storage: Storage,
    progress: Progress,
    stage: str = "calibrate",
) -> Model:
    """The base model fine-tuned on these samples of the pool, from storage or trained now.

    stage: what the run's lines call it.
    """
    artifact, inputs = model_artifact(config, base, sample_ids, storage)
    checkpoints = _checkpoints(artifact.key, config.cluster.train, storage)
    with artifact.lock(progress.say) as finished:
        if finished is None:
            require_gpus(config.cluster, "train")
            with artifact.writer() as writer, progress.stage(stage, "steps") as steps:
                scratch = writer.folder.sub("scratch")
                encoding, folder = EncoderSpec.of(config, base), scratch.sub(EXAMPLES)
                examples = write_examples(pool, sample_ids, encoding, folder)
                task = TrainTask(
                    name=f"{stage}-{artifact.key}",
                    model=base,
                    encoding=encoding,
                    calibrate=config.calibrate,
                    resources=config.cluster.train,
                    precision=config.cluster.precision,
                    seed=config.seed,
                    scratch=scratch,
                    examples=examples,
                    target=writer.folder.sub("model"),
                    logs=writer.folder.sub("tensorboard"),
                    checkpoints=checkpoints,
                )
                trained = fit(task, steps)
                scratch.delete()
                progress.count_tokens(stage, trained["tokens"])
                adapter = config.calibrate.lora_rank is not None
                info = {"samples": len(sample_ids), "adapter": adapter, **trained}
                finished = writer.finish(inputs, info)
            if train_s := trained["train_s"]:
                workers = config.cluster.train.workers
                speed = Speed(trained["tokens"], steps.elapsed(), workers * train_s, workers)
                training_speed(config, base, storage).write(speed)
        checkpoints.home.delete()  # also those of a run that died when it had just finished
    return calibrated_model(base, finished)


def training_speed(config: Config, base: Model, storage: Storage) -> SpeedNote:
    """Where the speed of a worker that trains this model is noted."""
    return SpeedNote(
        storage,
        stage="train",
        parameters=base.parameters(),
        precision=config.cluster.precision,
        cluster=config.cluster.name,
        gpus=config.cluster.train.gpus_per_worker,
        adapter=config.calibrate.lora_rank is not None,
        gradient_checkpointing=config.calibrate.gradient_checkpointing,
    )


def _checkpoints(key: str, resources: TrainResources, storage: Storage) -> Artifact:
    """Where a training leaves its checkpoints; they serve as many workers as wrote them, under the
    same versions of the libraries."""
    layout = {
        "workers": resources.workers,
        "fsdp": resources.fsdp,
        "versions": {name: version(name) for name in ("torch", "transformers", "accelerate")},
    }
    return storage.artifact("checkpoints", make_key(model=key, **layout))
