"""Where scores in shards come from that were not computed here.

A note beside the shards for each time that scores were taken over. It says of how many samples, and
not of which: folding brings together what has several origins. Shards serve all pools under their
model, so these may be samples of any.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from instructdiff_ray.storage.artifacts import make_key
from instructdiff_ray.storage.filesystem import Folder

ORIGINS = "origins"


@dataclass(frozen=True)
class Origin:
    """repository: of the Hub, `org/name`; commit: at which it was read; samples: whose scores were
    taken over."""

    repository: str
    commit: str
    samples: int


def note_origin(shards: Folder, origin: Origin, digest: str) -> None:
    """Note where scores come from, before they are written: none may count without it.

    digest: of the ids of their samples, for who takes over the same again, after a pull that was
    interrupted, is to write the same note again.
    """
    name = make_key(repository=origin.repository, commit=origin.commit, samples=digest)
    shards.sub(ORIGINS).write_json(f"{name}.json", asdict(origin))


def origins_of(folders: Iterable[Folder]) -> list[Origin]:
    """The origins of what these folders of shards hold, those of one commit added up."""
    samples: Counter[tuple[str, str]] = Counter()
    for folder in folders:
        notes = folder.sub(ORIGINS)
        for name in notes.sizes():
            if origin := _read(notes, name):
                samples[origin.repository, origin.commit] += origin.samples
    return [Origin(*place, count) for place, count in sorted(samples.items())]


def _read(notes: Folder, name: str) -> Origin | None:
    """A note; None where it is damaged, or another run has just deleted it."""
    try:
        return Origin(**json.loads(notes.read_bytes(name) or b""))
    except (ValueError, TypeError):
        return None
