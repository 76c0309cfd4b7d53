"""Calibrated models that were trained elsewhere, and are known here by their scores alone.

A note in the place of the artifact says which training it was, so that its scores are found as if
the model were here. Nothing is trained in its stead: another training of the same recipe has other
weights, and so other scores. A fine-tuning may make a model of the same recipe all the same: then
scores stay those of the note, as long as it is there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from instructdiff_ray.models.model import Model
from instructdiff_ray.storage.artifacts import Artifact, FinishedArtifact, Storage
from instructdiff_ray.storage.filesystem import join
from instructdiff_ray.training.calibrate import calibrated_identity, calibrated_model

NOTE = "trained-elsewhere.json"


@dataclass(frozen=True)
class Training:
    """What became of a training.

    inputs: what its key is made of; weights: hash of the trained weights; samples: trained on.
    """

    inputs: Mapping[str, Any]
    weights: str
    samples: int


def note_training(artifact: Artifact, training: Training, origin: str) -> None:
    """Make a model known under its key. origin: whose scores are known of it."""
    artifact.home.write_json(NOTE, {**asdict(training), "origin": origin})


def training_of(artifact: Artifact) -> Training | None:
    """What is known of a model that is here or was trained elsewhere."""
    finished, note = artifact.finished(), _note(artifact)
    if note and not _same(finished, note):
        return note.training
    if finished is None:
        return None
    return Training(finished.inputs, finished.info["weights"], finished.info["samples"])


def find_calibrated(base: Model, artifact: Artifact) -> Model | None:
    """The model of an artifact, finished here or known by its scores; None where it is neither."""
    finished, note = artifact.finished(), _note(artifact)
    if note and not _same(finished, note):
        return model_elsewhere(base, artifact.key, note.training.weights, note.origin)
    return None if finished is None else calibrated_model(base, finished)


def model_elsewhere(base: Model, key: str, weights: str, origin: str) -> Model:
    """A calibrated model without its weights. key: of its artifact; origin: whose scores are known
    of it."""
    return replace(base, identity=calibrated_identity(key, weights), known_from=origin)


@dataclass(frozen=True)
class _Note:
    training: Training
    origin: str


def _note(artifact: Artifact) -> _Note | None:
    """None where there is none, or it is damaged: the next pull writes it anew."""
    data = artifact.home.read_bytes(NOTE)
    if data is None:
        return None
    try:
        note = json.loads(data)
        training = Training(note["inputs"], note["weights"], note["samples"])
        return _Note(training, note["origin"])
    except (ValueError, KeyError, TypeError):
        return None


def _same(finished: FinishedArtifact | None, note: _Note) -> bool:
    """Whether what was trained here is what the note is of."""
    return finished is not None and finished.info["weights"] == note.training.weights


def weights_wanted(name: str, model: Model, samples: int, storage: Storage) -> str:
    """The line that says that samples lack scores which need a model that is not here."""
    note = join(storage.root, "models", model.identity.split("/")[0], NOTE)
    return (
        f"{samples:,} samples have no {name} scores, and the model that gives them is"
        f" {model.trained}: pull scores that have them, or delete {note}, and the same command"
        " trains the model here and scores all samples under it"
    )
