"""Where scores in shards come from that were not computed here.

A note beside the shards for each time that scores were taken over. It says of how many samples, and
not of which: folding brings together what has several origins.
"""

from __future__ import annotations

import json
import uuid
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from instructdiff_ray.storage.filesystem import Folder

ORIGINS = "origins"


@dataclass(frozen=True)
class Origin:
    """repository: of the Hub, `org/name`; commit: at which it was read; samples: whose scores were
    taken over."""

    repository: str
    commit: str
    samples: int


def note_origin(shards: Folder, origin: Origin) -> None:
    """Note where scores come from, before they are written: none may count without it."""
    shards.sub(ORIGINS).write_json(f"{uuid.uuid4().hex}.json", asdict(origin))


def origins_of(folders: Iterable[Folder]) -> list[Origin]:
    """The origins of what these folders of shards hold, those of one commit added up."""
    samples: Counter[tuple[str, str]] = Counter()
    for folder in folders:
        notes = folder.sub(ORIGINS)
        for name in notes.sizes():
            note = json.loads(notes.read_bytes(name) or b"{}")
            samples[note["repository"], note["commit"]] += note["samples"]
    return [Origin(*place, count) for place, count in sorted(samples.items())]
