"""A forward pass for each role of scores: which model is shown what; where its scores are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from instructdiff_ray.config.run import Config
from instructdiff_ray.models.encoding import Rendering
from instructdiff_ray.models.model import Model
from instructdiff_ray.pool.pool import Pool
from instructdiff_ray.storage.artifacts import Artifact, Finished, Storage, make_key
from instructdiff_ray.storage.filesystem import Folder

VERSION = 2  # of what scoring computes; raise it when the same input gives other scores


@dataclass(frozen=True)
class Forward:
    """A pass over the pool: a model, and what it is shown of each sample.

    model: one for all samples, or by domain.
    """

    model: Model | Mapping[str, Model]
    rendering: Rendering

    def domains(self) -> list[str | None]:
        """Those that have a model of their own; [None] where all have the same."""
        return [None] if isinstance(self.model, Model) else list(self.model)

    def model_of(self, domain: str | None) -> Model:
        if isinstance(self.model, Model):
            return self.model
        assert domain is not None
        return self.model[domain]


@dataclass(frozen=True)
class Place:
    """Where the scores of one forward pass over one pool are or will be.

    inputs: what the artifact's key is made of; pieces: by domain, where its scorers' pieces are.
    """

    artifact: Artifact
    inputs: dict[str, Any]
    pieces: dict[str | None, Folder]

    def pieces_of(self, domain: str | None) -> Folder:
        return self.pieces[domain if domain in self.pieces else None]


def find_places(
    config: Config, pool: Pool, forwards: Mapping[str, Forward], storage: Storage
) -> dict[str, Place]:
    """The place of each role's scores."""
    places = {}
    for role, forward in forwards.items():
        scorers = {
            domain: {
                "version": VERSION,
                "model": forward.model_of(domain).identity,
                "precision": config.cluster.precision,
                "rendering": forward.rendering.inputs(),
            }
            for domain in forward.domains()
        }
        scorer = scorers.get(None) or {str(domain): one for domain, one in scorers.items()}
        inputs = {"scorer": scorer, "pool": pool.digest}
        pieces = {
            domain: storage.folder("pieces", make_key(**one)) for domain, one in scorers.items()
        }
        places[role] = Place(storage.artifact("scores", make_key(**inputs)), inputs, pieces)
    return places


def scores_keys(
    config: Config, pool: Pool, forwards: Mapping[str, Forward], storage: Storage
) -> dict[str, str]:
    """Key of each role's scores, as `<role>_scores`."""
    places = find_places(config, pool, forwards, storage)
    return {f"{role}_scores": place.artifact.key for role, place in places.items()}


def finished_scores(
    config: Config, pool: Pool, forwards: Mapping[str, Forward], storage: Storage
) -> dict[str, Finished]:
    """The scores by role, from storage; UserError where they were not computed yet."""
    places = find_places(config, pool, forwards, storage)
    return {
        role: place.artifact.require(f"the {role} scores", "run jobs/score.py first")
        for role, place in places.items()
    }
