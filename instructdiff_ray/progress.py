"""What stage runs, how far it is, how fast, and when it may end: one plain line at a time.

On a terminal the line is rewritten in place; in a log file a new line comes now and then, so that
both stay readable.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO


class Progress:
    """Prints the stages of a run and keeps their seconds."""

    def __init__(self, stream: TextIO | None = None, log_every_s: float = 10.0) -> None:
        self.stream = stream or sys.stdout
        self.terminal = self.stream.isatty()
        self.every_s = 0.2 if self.terminal else log_every_s
        self.seconds: dict[str, float] = {}

    def say(self, line: str) -> None:
        print(line, file=self.stream, flush=True)

    @contextmanager
    def stage(self, name: str, unit: str, total: float | None = None) -> Iterator[Stage]:
        """A stage of `total` units of work (None: unknown) that is counted in `unit`.

        Its seconds are added to those of earlier stages of the same name, also when it fails.
        """
        stage = Stage(self, name, unit, total)
        stage.show("started")
        try:
            yield stage
        finally:
            stage.close()
            self.seconds[name] = self.seconds.get(name, 0.0) + stage.elapsed()

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
        self.began = self.shown = time.monotonic()

    def elapsed(self) -> float:
        return time.monotonic() - self.began

    def add(self, count: float, work: float | None = None, note: str = "") -> None:
        """`count` more units are done; work: their share of `total` where it is another measure."""
        self.count += count
        self.work += count if work is None else work
        self.note = note
        if time.monotonic() - self.shown >= self.progress.every_s:
            self.show()

    def show(self, status: str = "", last: bool = False) -> None:
        self.shown = time.monotonic()
        self.progress.line(f"{self.name:<14}{status or self._status()}", last)

    def close(self) -> None:
        done = f"{self.count:,.0f} {self.unit}" if self.count else "ended"
        self.show(f"{done} in {duration(self.elapsed())}{self._speed()}", last=True)

    def _status(self) -> str:
        share, left = "", ""
        if self.total and self.work:
            share = f"{min(1.0, self.work / self.total):4.0%}  "
            remaining = self.elapsed() * max(0.0, self.total / self.work - 1)
            left = f", about {duration(remaining)} left"
        note = f", {self.note}" if self.note else ""
        return f"{share}{self.count:,.0f} {self.unit}{self._speed()}{left}{note}"

    def _speed(self) -> str:
        speed = self.count / max(self.elapsed(), 1e-9)
        return f" ({speed:,.{0 if speed >= 10 else 1}f}/s)" if self.count else ""


def duration(seconds: float) -> str:
    """Seconds as a person says them: `8 s`, `4 min 10 s`, `3 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
