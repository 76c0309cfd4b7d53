"""What stage runs, how far it is, how fast, and when it may end: one plain line at a time.

On a terminal the line is rewritten in place; in a log file a new line comes now and then, so that
both stay readable. The stages of a command, as they stand, are what others show of it
(results/watch.py).
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TextIO

# A line that says the same of what is waited for comes again after so many times `idle_s`.
AGAIN = 10


@dataclass(frozen=True)
class StageState:
    """How a stage stands.

    count: what is done, in `unit`; total, work: what there is to do and what of it is done, in the
        measure in which it is known beforehand, such as tokens; total None: not known.
    seconds: since it began, or that it took.
    """

    name: str
    unit: str
    count: float
    work: float
    total: float | None
    seconds: float
    ended: bool
    note: str = ""

    @property
    def share(self) -> float | None:
        """Of its work that is done, 1 at most; None where that is not known."""
        return min(1.0, self.work / self.total) if self.total and self.work else None

    @property
    def rate(self) -> float:
        """Of `count`, a second."""
        return self.count / max(self.seconds, 1e-9)

    @property
    def seconds_left(self) -> float | None:
        """At the speed so far; None where that is not known, and when it has ended."""
        if self.ended or not (self.total and self.work):
            return None
        return self.seconds * max(0.0, self.total / self.work - 1)

    def line(self) -> str:
        """For people: how far, how fast, how long still."""
        if self.ended:
            done = f"{self.count:,.0f} {self.unit}" if self.count else "ended"
            return f"{done} in {duration(self.seconds)}{self._speed()}"
        share, left = self.share, self.seconds_left
        percentage = "" if share is None else f"{share:4.0%}  "
        remaining = "" if left is None else f", about {duration(left)} left"
        note = f", {self.note}" if self.note else ""
        return f"{percentage}{self.count:,.0f} {self.unit}{self._speed()}{remaining}{note}"

    def _speed(self) -> str:
        return f" ({self.rate:,.{0 if self.rate >= 10 else 1}f}/s)" if self.count else ""


class Progress:
    """Prints the stages of a run and keeps them: `stages`, in the order in which they began; the
    seconds of all that have ended, by their name; and how many tokens models read in them, where
    these are counted here.

    why_idle: gives the line that says why nothing gets done, or None; it is asked, in a thread,
    when nothing was done for `idle_s` seconds.
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        log_every_s: float = 10.0,
        why_idle: Callable[[], str | None] | None = None,
        idle_s: float = 60.0,
    ) -> None:
        self.why_idle = why_idle
        self.idle_s = idle_s
        self.stream = stream or sys.stdout
        self.terminal = self.stream.isatty()
        self.every_s = 0.2 if self.terminal else log_every_s
        self.seconds: dict[str, float] = {}
        self.stages: list[Stage] = []
        self.tokens: dict[str, float] = {}

    def count_tokens(self, name: str, count: float) -> None:
        """`count` more tokens were read by a model in the stage of this name."""
        self.tokens[name] = self.tokens.get(name, 0.0) + count

    def say(self, line: str) -> None:
        print(line, file=self.stream, flush=True)

    @contextmanager
    def stage(self, name: str, unit: str, total: float | None = None) -> Iterator[Stage]:
        """A stage of `total` units of work (None: unknown) that is counted in `unit`.

        Its seconds are added to those of earlier stages of the same name, also when it fails.
        """
        stage = Stage(self, name, unit, total)
        self.stages.append(stage)
        stage.show("started")
        try:
            with self.watched(stage):
                yield stage
        finally:
            stage.close()
            self.seconds[name] = self.seconds.get(name, 0.0) + stage.elapsed()

    @contextmanager
    def watched(self, stage: Stage | None = None) -> Iterator[None]:
        """Says what the block waits for: where the stage, or all of the block, takes its time."""
        if self.why_idle is None:
            yield
            return
        why_idle, began, done = self.why_idle, time.monotonic(), threading.Event()

        def watch() -> None:
            said, said_at = None, began
            while not done.wait(self.idle_s / 4):
                now, changed = time.monotonic(), stage.changed if stage else began
                if now - changed < self.idle_s or now - said_at < self.idle_s:
                    continue
                line = why_idle()
                if line and (line != said or now - said_at > AGAIN * self.idle_s):
                    said, said_at = line, now
                    self.say(f"\r\x1b[K{line}" if self.terminal else line)

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join(timeout=1)  # it may be asking, and nobody waits for its answer

    def line(self, text: str, last: bool) -> None:
        if self.terminal:
            print(f"\r\x1b[K{text}", end="\n" if last else "", file=self.stream, flush=True)
        else:
            self.say(text)


class Stage:
    """One stage under way: `add` what was done, now and then a line is shown."""

    def __init__(self, progress: Progress, name: str, unit: str, total: float | None) -> None:
        self.progress = progress
        self.name = name
        self.unit = unit
        self.total = total
        self.count = 0.0
        self.work = 0.0
        self.note = ""
        self.began = self.shown = self.changed = time.monotonic()
        self.ended: float | None = None

    def elapsed(self) -> float:
        return (time.monotonic() if self.ended is None else self.ended) - self.began

    def state(self) -> StageState:
        """How it stands; may be asked by another thread."""
        return StageState(
            self.name,
            self.unit,
            self.count,
            self.work,
            self.total,
            self.elapsed(),
            self.ended is not None,
            self.note,
        )

    def add(self, count: float, work: float | None = None, note: str = "") -> None:
        """`count` more units are done; work: their share of `total` where it is another measure."""
        self.count += count
        self.work += count if work is None else work
        self.note = note
        if count:
            self.changed = time.monotonic()
        if time.monotonic() - self.shown >= self.progress.every_s:
            self.show()

    def show(self, status: str = "", last: bool = False) -> None:
        self.shown = time.monotonic()
        self.progress.line(f"{self.name:<14}{status or self.state().line()}", last)

    def close(self) -> None:
        self.ended = time.monotonic()
        self.show(last=True)


def duration(seconds: float) -> str:
    """Seconds as a person says them: `8 s`, `4 min 10 s`, `3 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
