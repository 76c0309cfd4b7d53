"""The scores that are wanted of a pool, and the finished scores."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa

from instructdiff_ray.models.encoding import EncoderSpec
from instructdiff_ray.models.model import Model, ModelByDomain
from instructdiff_ray.pool.partition import partition_file
from instructdiff_ray.storage.artifacts import FinishedArtifact

SCORES = "scores"  # how the files of the partitions begin


@dataclass(frozen=True)
class ScoreSpec:
    """Scores of every sample of a pool, by one model that reads it in one form.

    name: what a strategy calls them: `base`, `calibrated`, `alone`, …
    model: one for all samples, or by domain.
    """

    name: str
    model: ModelByDomain
    encoding: EncoderSpec

    def domains(self) -> list[str | None]:
        """The domains that have a model of their own; [None] where all have the same."""
        return [None] if isinstance(self.model, Model) else list(self.model)

    def model_of(self, domain: str | None) -> Model:
        if isinstance(self.model, Model):
            return self.model
        assert domain is not None
        return self.model[domain]


@dataclass(frozen=True)
class ScoreTable:
    """Finished scores: a row for each sample of a pool, in the order of its index.

    Its columns are sample_id, response_tokens, the measures (in nats, or a rating), reason and
    detail; where a sample could not be scored the measures are null and the last two are not.
    """

    artifact: FinishedArtifact
    measures: tuple[str, ...]

    def read(self, columns: list[str]) -> Iterator[pa.Table]:
        """These columns, a partition of the pool at a time."""
        for number in range(self.artifact.info["partitions"]):
            yield self.artifact.folder.read_table(partition_file(SCORES, number), columns)
