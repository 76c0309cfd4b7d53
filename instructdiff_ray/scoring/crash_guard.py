"""What scorers have begun and not ended: how a sample that kills its scorer is told from the rest.

A process that is killed can't say what it was doing. So it says so before, to an actor on the
driver's machine, which lives as long as the run does. Ray starts a dead scorer again and hands it
the same block: it then goes through the block sample by sample, and quarantines the one on which it
dies again. A machine that was taken away costs a block's time and no sample.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from instructdiff_ray.errors import UserError
from instructdiff_ray.telemetry import SCORER_RETRIES

# Deaths on one sample alone, after the one on its block.
MAX_DEATHS = 2
# Samples quarantined one after the other, with none scored between: it is not the samples.
MAX_IN_SUCCESSION = 10
MAX_LOADS = 3


@ray.remote(num_cpus=0)
class CrashGuard:
    """Counts what was begun and not ended, by name; and remembers the quarantined samples."""

    def __init__(self) -> None:
        self.begun: Counter[str] = Counter()
        self.quarantined: set[str] = set()
        self.in_succession = 0

    def begin(self, name: str) -> int:
        """Times that it was begun without an end, with this one."""
        self.begun[name] += 1
        SCORER_RETRIES.add(self.begun[name] > 1)
        return self.begun[name]

    def end(self, name: str, scored: bool) -> None:
        """It is done; scored: samples were, so the machine and the model are sound."""
        self.begun.pop(name, None)
        if scored:
            self.in_succession = 0

    def begin_alone(self, name: str) -> int:
        """0 where the sample may be scored; else how many were quarantined in succession."""
        if name in self.quarantined:
            return 1
        if self.begin(name) <= MAX_DEATHS:
            return 0
        self.quarantined.add(name)
        self.in_succession += 1
        return self.in_succession


def start_crash_guard() -> ActorHandle:
    """A crash guard on this machine: a spot machine that is taken away must not take it along."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return CrashGuard.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]


class CrashGuardClient:
    """A scorer's side of the crash guard."""

    def __init__(self, guard: ActorHandle) -> None:
        self.guard = guard

    def begin(self, name: str) -> int:
        """Waits until it is noted: what follows may kill this process."""
        count: Any = ray.get(self.guard.begin.remote(name))
        return int(count)

    def end(self, name: str, scored: bool) -> None:
        self.guard.end.remote(name, scored)

    def begin_load(self) -> None:
        """Raises UserError where this actor died each time that it loaded its models."""
        if self.begin(self._load()) > MAX_LOADS:
            raise UserError(
                f"a scorer died {MAX_LOADS} times while it loaded its models, most likely for want"
                " of memory; take a larger machine, or fewer cluster.score.max_actors"
            )

    def end_load(self) -> None:
        self.end(self._load(), scored=False)

    def _load(self) -> str:
        return f"load {ray.get_runtime_context().get_actor_id()}"  # the same after a restart

    def quarantined(self, name: str) -> bool:
        """Begins a sample alone, in one encoding; True where it is not to be scored.

        Raises UserError where too many were quarantined in succession.
        """
        in_succession: Any = ray.get(self.guard.begin_alone.remote(name))
        if in_succession >= MAX_IN_SUCCESSION:
            raise UserError(
                f"scorers died on {MAX_IN_SUCCESSION} samples in succession, last {name}; it"
                " is the machine or the model, look into Ray's logs"
            )
        return bool(in_succession)
