"""`scores.json`: what is published of a run's scores, and by what they are known.

It comes from strangers, so it is checked when it is read: keys are made anew of what they are said
to be made of, and names of files are of one form.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from instructdiff_ray.errors import UserError, require
from instructdiff_ray.pool.partition import MOST_PARTITIONS
from instructdiff_ray.storage.artifacts import make_key
from instructdiff_ray.training.known_models import Training

PUBLICATION = "scores.json"
FORMAT = 1  # of the file; raise it when another version could not read it
SHA256 = re.compile(r"[0-9a-f]{64}")
WEIGHTS = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True)
class PublishedFile:
    """One partition's scores, sorted by sample_id. size: in bytes."""

    name: str
    partition: int
    rows: int
    size: int
    sha256: str

    def __post_init__(self) -> None:
        numbers = (self.partition, self.rows, self.size)
        require(
            all(isinstance(number, int) and number >= 0 for number in numbers)
            and bool(SHA256.fullmatch(self.sha256)),
            f"{PUBLICATION}: {self.name} has no valid size or digest",
        )


@dataclass(frozen=True)
class PublishedScores:
    """The scores of one model in one encoding and precision.

    name: what strategies call them; round: the first that used them; domain: that they are of,
        where each has a model of its own.
    key, scorer: of the shards, and what the key is made of.
    partitions: into so many the ids are split; files: of those that hold a sample.
    """

    name: str
    round: int
    domain: str | None
    key: str
    scorer: Mapping[str, Any]
    measures: Sequence[str]
    samples: int
    partitions: int
    files: Sequence[PublishedFile]

    def __post_init__(self) -> None:
        _check_key(self.key, self.scorer)
        require(
            self.partitions in (1 << bits for bits in range(MOST_PARTITIONS.bit_length())),
            f"{PUBLICATION}: {self.partitions} is no number of partitions",
        )
        require(
            self.samples == sum(file.rows for file in self.files)
            and len({file.partition for file in self.files}) == len(self.files)
            and all(
                file.partition < self.partitions
                and file.name == scores_file(self.key, file.partition)
                for file in self.files
            ),
            f"{PUBLICATION}: the files of the {self.name} scores are not as they should be",
        )

    @property
    def trained(self) -> str | None:
        """The key of the model's training; None of a model that was not trained by us."""
        key, _, weights = str(self.scorer["model"]).partition("/")
        return key if weights else None


@dataclass(frozen=True)
class Publication:
    """What one repository holds.

    base_model: its name, its commit on the Hub (None: a local folder), its identity.
    pool: `samples`, `digest`, and where it can be had: `path`, `subset`, `split` (None: nowhere).
    settings: those by which samples were drawn and selected, and `data`.
    models: calibrated models by key.
    """

    base_model: Mapping[str, Any]
    pool: Mapping[str, Any]
    settings: Mapping[str, Any]
    scores: Sequence[PublishedScores]
    models: Mapping[str, Training]

    def __post_init__(self) -> None:
        require(
            isinstance(self.pool["samples"], int)
            and {"path", "digest"} <= {*self.pool}
            and isinstance(self.base_model["name"], str)
            and {"commit", "identity"} <= {*self.base_model}
            and isinstance(self.settings, dict),
            f"{PUBLICATION} does not say what pool and base model the scores are of",
        )
        for key, model in self.models.items():
            _check_key(key, model.inputs)
            require(
                bool(WEIGHTS.fullmatch(model.weights)),
                f"{PUBLICATION}: the model {key} has no hash of its weights",
            )
        for scores in self.scores:
            trained = scores.trained
            require(
                trained is None
                or trained in self.models
                and scores.scorer["model"] == f"{trained}/{self.models[trained].weights}",
                f"{PUBLICATION}: the model of the {scores.name} scores is not described",
            )

    def to_json(self) -> bytes:
        """The content of `scores.json`."""
        value = {"format": FORMAT, **asdict(self)}
        return json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True).encode() + b"\n"


def scores_file(key: str, partition: int) -> str:
    """The name in the repository of one partition's scores."""
    return f"scores/{key}/scores-{partition:05}.parquet"


def read_publication(data: bytes) -> Publication:
    """What `scores.json` says. Raises UserError where it is none, or does not agree with itself."""
    try:
        value = json.loads(data)
        found = value.pop("format")
        require(
            found == FORMAT,
            f"{PUBLICATION} has format {found!r:.20}, and this version reads {FORMAT}; install the"
            " version of instructdiff-ray that wrote it",
        )
        scores = [
            PublishedScores(**{**each, "files": [PublishedFile(**f) for f in each["files"]]})
            for each in value["scores"]
        ]
        models = {key: Training(**model) for key, model in value["models"].items()}
        return Publication(**{**value, "scores": scores, "models": models})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{PUBLICATION} is not what `scores push` writes ({type(error).__name__})"
        ) from None


def _check_key(key: str, inputs: Mapping[str, Any]) -> None:
    require(
        make_key(**inputs) == key,
        f"{PUBLICATION}: {key} is not the key of what it is said to be made of",
    )
