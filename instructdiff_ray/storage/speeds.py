"""How fast stages were that ran models: notes in storage, by which later runs are planned.

A note is no artifact: no result depends on it, the last one counts, and it may be deleted.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from instructdiff_ray.errors import UserError
from instructdiff_ray.storage.artifacts import Storage, make_key

SPEED = "speed.json"
# A note is replaced by one of at least this share of its tokens: what a run that was cut off had
# left, a few samples, says nothing of the whole.
LEAST_SHARE = 0.1


@dataclass(frozen=True)
class Speed:
    """What a stage was measured at.

    tokens: that its models read; seconds: from its start to its end; busy_s: seconds in which its
    processes computed, of all together; processes: how many did; starts: how often they were
    started, one set after the other.
    """

    tokens: float
    seconds: float
    busy_s: float
    processes: float
    starts: int = 1

    @property
    def tokens_per_second(self) -> float:
        """Of one process, while it computes."""
        return self.tokens / max(self.busy_s, 1e-9)

    @property
    def start_s(self) -> float:
        """Seconds of a start, and of whatever else no process computes in."""
        return max(0.0, self.seconds - self.busy_s / self.processes) / self.starts


class SpeedNote:
    """Where the speed of a stage is noted. what: all that it depends on, as JSON values.

    A storage that fails here costs the note, and never what a model has just done.
    """

    def __init__(self, storage: Storage, **what: Any) -> None:
        self.folder = storage.folder("speeds", make_key(**what))
        self.what = what

    def read(self) -> Speed | None:
        """The last one; None where nothing was measured."""
        try:
            return Speed(**json.loads(self.folder.read_bytes(SPEED) or b"")["speed"])
        except (ValueError, KeyError, TypeError, OSError, UserError):
            return None

    def write(self, speed: Speed) -> None:
        """Note it, unless it was measured on next to nothing."""
        if not (speed.tokens and speed.busy_s and speed.processes):
            return
        last = self.read()
        if last is None or speed.tokens >= LEAST_SHARE * last.tokens:
            with suppress(OSError, UserError):
                self.folder.write_json(SPEED, {"speed": asdict(speed), **self.what})
