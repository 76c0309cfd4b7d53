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
from instructdiff_ray.pool.partition import MOST_PARTITIONS, ROWS_PER_PARTITION
from instructdiff_ray.sharing.settings import shown
from instructdiff_ray.storage.artifacts import make_key
from instructdiff_ray.training.known_models import Training

PUBLICATION = "scores.json"
MOST_BYTES = 16 << 20  # of it: 60,000 files, each of a million rows
FORMAT = 2  # of the file; raise it when another version could not read it
SHA256 = re.compile(r"[0-9a-f]{64}")
HASH = re.compile(r"[0-9a-f]{16}")  # a key, or the hash of weights
NAME = re.compile(r"[a-z][a-z0-9_-]{0,39}")  # of scores, and of their measures
PLACE = re.compile(r"[\w.-]+(/[\w.-]+)?@[0-9a-f]{40}", re.ASCII)
# More than there are, so that what a stranger claims asks for no more memory than scores do. No
# partition holds as many rows, for ids are hashes; a row has 80 bytes or so before compression.
MOST_SAMPLES = MOST_PARTITIONS * ROWS_PER_PARTITION
MOST_ROWS, BYTES_PER_ROW, BYTES_PER_FILE = 2 * ROWS_PER_PARTITION, 256, 1 << 20


@dataclass(frozen=True)
class PublishedFile:
    """One partition's scores, sorted by sample_id. size: in bytes."""

    name: str
    partition: int
    rows: int
    size: int
    sha256: str

    def __post_init__(self) -> None:
        require(
            _is_count(self.partition, MOST_PARTITIONS)
            and _is_count(self.rows, MOST_ROWS)
            and _is_count(self.size, self.most_bytes)
            and bool(SHA256.fullmatch(self.sha256)),
            f"{PUBLICATION}: {shown(self.name)} has no valid size or digest",
        )

    @property
    def most_bytes(self) -> int:
        """What so many rows take at most, compressed or not."""
        return BYTES_PER_FILE + BYTES_PER_ROW * self.rows


@dataclass(frozen=True)
class PublishedScores:
    """The scores of one model in one encoding and precision.

    name: what strategies call them; round: the first that used them; domain: that they are of,
        where each has a model of its own.
    key, scorer: of the shards, and what the key is made of.
    partitions: into so many the ids are split; files: of those that hold a sample.
    taken_from: publications, as `org/name@commit`, some of whose scores are among these.
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
    taken_from: Sequence[str]

    def __post_init__(self) -> None:
        require(
            bool(NAME.fullmatch(self.name))
            and _is_count(self.round, MOST_SAMPLES)
            and (self.domain is None or isinstance(self.domain, str))
            and isinstance(self.measures, list)
            and all(NAME.fullmatch(measure) for measure in self.measures)
            and all(PLACE.fullmatch(place) for place in self.taken_from),
            f"{PUBLICATION}: {shown(self.name)} scores are not described as scores are",
        )
        _check_key(self.key, self.scorer)
        require(
            type(self.partitions) is int
            and self.partitions in (1 << bits for bits in range(MOST_PARTITIONS.bit_length())),
            f"{PUBLICATION}: {shown(self.partitions)} is no number of partitions",
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
    settings: those by which rows were read, samples drawn and selected, and models found.
    models: calibrated models by key.
    """

    base_model: Mapping[str, Any]
    pool: Mapping[str, Any]
    settings: Mapping[str, Any]
    scores: Sequence[PublishedScores]
    models: Mapping[str, Training]

    def __post_init__(self) -> None:
        require(
            _is_count(self.pool["samples"], MOST_SAMPLES)
            and {"path", "digest"} <= {*self.pool}
            and isinstance(self.base_model["name"], str)
            and {"commit", "identity"} <= {*self.base_model}
            and isinstance(self.settings, dict),
            f"{PUBLICATION} does not say what pool and base model the scores are of",
        )
        for key, model in self.models.items():
            _check_key(key, model.inputs)
            require(
                bool(HASH.fullmatch(model.weights)) and _is_count(model.samples, MOST_SAMPLES),
                f"{PUBLICATION}: the model {key} has no hash of its weights, or number of samples",
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
        bool(HASH.fullmatch(key)) and make_key(**inputs) == key,
        f"{PUBLICATION}: {shown(key)} is not the key of what it is said to be made of",
    )


def _is_count(value: Any, most: int) -> bool:
    """Whether it is a whole number from 0 to the most; True is none, and 1.0 is none."""
    return type(value) is int and 0 <= value <= most
