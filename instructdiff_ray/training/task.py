"""What the driver hands to the workers of one training."""

from __future__ import annotations

from dataclasses import dataclass

from instructdiff_ray.config.cluster import TrainResources
from instructdiff_ray.config.training import CalibrateConfig
from instructdiff_ray.models.encoding import EncoderSpec
from instructdiff_ray.models.model import Model
from instructdiff_ray.storage.artifacts import Artifact
from instructdiff_ray.storage.filesystem import Folder

EXAMPLES = "examples"  # in the scratch folder: the training set
TRAINED = "trained.json"  # in the scratch folder: the saved model's identity


@dataclass(frozen=True)
class TrainTask:
    """All that a training worker is told.

    name: what Ray's dashboard and trackers call it;
    scratch: folder that holds the training set, and what Ray Train keeps; examples: the set's
    files; target: folder that takes the finished model, a Hugging Face folder; logs: folder that
    takes TensorBoard's files;
    checkpoints: the artifact that takes checkpoints, and that a training goes on from.
    """

    name: str
    model: Model
    encoding: EncoderSpec
    calibrate: CalibrateConfig
    resources: TrainResources
    precision: str
    seed: int
    scratch: Folder
    examples: list[str]
    target: Folder
    logs: Folder
    checkpoints: Artifact
