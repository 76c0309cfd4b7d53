"""While a command runs: `progress.json` in its folder, and its stages for Prometheus."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

from instructdiff_ray.context import RunContext
from instructdiff_ray.errors import UserError, user_error_in
from instructdiff_ray.progress import StageState
from instructdiff_ray.results.status import FAILED, FINISHED, PROGRESS, RUNNING
from instructdiff_ray.storage.filesystem import is_uri
from instructdiff_ray.telemetry import (
    RUN_INFO,
    STAGE_ITEMS,
    STAGE_PROGRESS,
    STAGE_SECONDS,
    job_id,
)

# A gauge that was not set for twenty seconds is gone.
UPDATE_EVERY_S = 5.0
WRITE_TO_STORE_EVERY_S = 30.0  # a request each, which a store may charge for
LONGEST_LINE = 500


@contextmanager
def watched(context: RunContext, command: str) -> Iterator[None]:
    """Tells of the command while the block runs, from a thread of its own, and how it ended.

    Telling may fail, at times or always, and the command goes on: nothing depends on it.
    """
    watch, done = Watch(context, command), threading.Event()

    def keep_telling() -> None:
        while not done.wait(UPDATE_EVERY_S):
            watch.update()

    watch.update()
    thread = threading.Thread(target=keep_telling, daemon=True)
    thread.start()

    def end(_kind: object, error: BaseException | None, _trace: object) -> None:
        done.set()
        thread.join()
        watch.update(*((FAILED, failure_line(error)) if error else (FINISHED, None)))

    with ExitStack() as stack:
        stack.push(end)
        yield


def failure_line(error: BaseException) -> str:
    """What a command ended with, in one line."""
    if isinstance(error, KeyboardInterrupt | SystemExit):
        return "it was stopped; the same command goes on where it stopped"
    known = error if isinstance(error, UserError) else user_error_in(error)
    if known:
        return " ".join(str(known).split())
    # Of a worker's error that Ray passes on, the last line is the worker's own.
    last = next(reversed([line for line in str(error).splitlines() if line.strip()]), "")
    return f"{type(error).__name__}: {' '.join(last.split())}"[:LONGEST_LINE]


class Watch:
    """What is told of one command."""

    def __init__(self, context: RunContext, command: str) -> None:
        self.context = context
        self.command = command
        self.began = _now()
        self.every_s = WRITE_TO_STORE_EVERY_S if is_uri(context.folder.path) else 0.0
        self.written: datetime | None = None
        self.warned = False
        # Of each stage, by its number, what Prometheus was told.
        self.items: dict[int, float] = defaultdict(float)
        self.seconds: dict[int, float] = defaultdict(float)

    def update(self, state: str = RUNNING, line: str | None = None) -> None:
        """Tell how it stands now. line: what it failed with."""
        stages = [stage.state() for stage in [*self.context.progress.stages]]
        if job_id():
            self._tell_prometheus(stages)
        now = _now()
        due = self.written is None or (now - self.written).total_seconds() >= self.every_s
        if due or state != RUNNING:
            self.written = now
            self._write(self.content(stages, now, state, line))

    def _write(self, content: dict[str, Any]) -> None:
        try:
            self.context.folder.write_json(PROGRESS, content)
        except (OSError, UserError) as error:  # tried again at the next update
            if not self.warned:
                self.context.progress.say(f"{PROGRESS} can't be written now: {error}")
                self.warned = True

    def content(
        self, stages: Sequence[StageState], now: datetime, state: str, line: str | None
    ) -> dict[str, Any]:
        """What `progress.json` holds; times in UTC."""
        context = self.context
        return {
            "state": state,
            "error": line,
            "command": self.command,
            "run_dir": context.folder.path,
            "storage": context.storage.root,
            "strategy": context.config.strategy,
            "models": self._models(),
            "host": socket.gethostname(),
            "ray": {"job_id": job_id(), "submission_id": _submission_id()},
            "began": _iso(self.began),
            "updated": _iso(now),
            "stages": [_as_json(stage, now) for stage in stages],
        }

    def _models(self) -> dict[str, str]:
        context = self.context
        models = {"base": context.base.path}
        if context.target.path != context.base.path:
            models["finetune"] = context.target.path
        for baseline in context.models_by_strategy.values():
            if baseline.small:
                models["small"] = baseline.small.path
            models |= {f"rating-{n}": rater.path for n, rater in enumerate(baseline.raters)}
        return models

    def _tell_prometheus(self, stages: Sequence[StageState]) -> None:
        RUN_INFO.set(1, command=self.command, run_dir=self.context.folder.path)
        for number, stage in enumerate(stages):
            # A training that goes on from a checkpoint counts its steps again.
            items, seconds = max(stage.count, self.items[number]), stage.seconds
            STAGE_ITEMS.add(items - self.items[number], stage=stage.name, unit=stage.unit)
            STAGE_SECONDS.add(seconds - self.seconds[number], stage=stage.name)
            changed = seconds > self.seconds[number]
            self.items[number], self.seconds[number] = items, seconds
            if stage.share is not None and changed:
                STAGE_PROGRESS.set(stage.share, stage=stage.name)


def _submission_id() -> str | None:
    """The name by which `ray job` knows this process, if it started it."""
    job: dict[str, Any] = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    submission: str | None = job.get("metadata", {}).get("job_submission_id")
    return submission


def _as_json(stage: StageState, now: datetime) -> dict[str, Any]:
    left = stage.seconds_left
    end = None if left is None else _iso(now + timedelta(seconds=left))
    derived = {"share": stage.share, "rate": stage.rate, "expected_end": end}
    amounts = {"count": round(stage.count), "work": round(stage.work)}
    total = None if stage.total is None else round(stage.total)
    return {**asdict(stage), **amounts, "total": total, **derived}


def _now() -> datetime:
    return datetime.now(UTC)


def _iso(time: datetime) -> str:
    return time.isoformat(timespec="seconds")
