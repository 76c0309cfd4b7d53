"""How a run stands, as its folder tells anybody who can read it: from another machine, say.

`progress.json` is news and no result: that a selection is complete, `summary.json` alone says.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any

from instructdiff_ray.errors import UserError
from instructdiff_ray.progress import StageState, duration
from instructdiff_ray.storage.filesystem import Folder, join, open_filesystem

PROGRESS, SUMMARY, REPORT = "progress.json", "summary.json", "report/index.html"
RUNNING, FINISHED, FAILED, SILENT = "running", "finished", "failed", "silent"
# Longer than writing to a store that is throttled takes with all its retries.
SILENT_AFTER_S = 300


@dataclass(frozen=True)
class RunStatus:
    """state: running, finished, failed or silent; lines: for people."""

    state: str
    lines: list[str]


def run_status(folder: Folder, now: datetime) -> RunStatus:
    """How the run of this folder stands. Raises UserError where there is none."""
    progress = _read(folder, PROGRESS)
    summary = _read(folder, SUMMARY)
    if progress is None and summary is None:
        raise UserError(
            f"{folder.path} holds no {PROGRESS}; name the folder of a run (run_dir, or a folder in"
            " runs/ of its storage)"
        )
    if progress is None:  # of a run before there was one, or copied without it
        return RunStatus(FINISHED, [FINISHED, *_selection(summary)])
    try:
        return _status(folder, progress, summary, now)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{join(folder.path, PROGRESS)} is none of a run, or of another version: {error!r}"
        ) from None


def _status(
    folder: Folder, progress: Mapping[str, Any], summary: Mapping[str, Any] | None, now: datetime
) -> RunStatus:
    began, updated = (datetime.fromisoformat(progress[name]) for name in ("began", "updated"))
    # An earlier run may have left one, which stays there until this run has something better.
    written = _modified(folder, SUMMARY) if summary else None
    complete = written is not None and written >= began
    state, age = progress["state"], (now - updated).total_seconds()
    if state == RUNNING and complete:  # it was killed between the two
        state = FINISHED
    if state == RUNNING and age > SILENT_AFTER_S:
        state = SILENT
    heard = f"last heard of {duration(max(0.0, age))} ago"
    headline = {
        RUNNING: f"{RUNNING}, {heard}",
        FINISHED: f"{FINISHED}, {duration(max(0.0, age))} ago",
        FAILED: f"{FAILED}: {progress['error']}",
        SILENT: f"{SILENT}: {heard}, so it was killed, or its machine or the way to it is gone;"
        " the same command goes on where it stopped",
    }[state]
    models = ", ".join(f"{name} {path}" for name, path in progress["models"].items())
    lines = [headline, f"{progress['command']} on {_place(progress)}", f"models: {models}"]
    lines.append(f"began {began:%Y-%m-%d %H:%M:%S} UTC")
    for stage in progress["stages"]:
        lines.append(f"  {stage['name']:<14}{_stage(stage).line()}")
        if state == RUNNING and stage["expected_end"]:
            end = datetime.fromisoformat(stage["expected_end"])
            lines.append(f"  {'':<14}to end at about {end:%Y-%m-%d %H:%M:%S} UTC")
    if complete:
        lines += _selection(summary)
    return RunStatus(state, lines)


def _place(progress: Mapping[str, Any]) -> str:
    ray = progress["ray"]
    named = " ".join(filter(None, (ray["job_id"], ray["submission_id"])))
    return progress["host"] + (f", Ray job {named}" if named else "")


def _stage(stage: Mapping[str, Any]) -> StageState:
    return StageState(**{field.name: stage[field.name] for field in fields(StageState)})


def _selection(summary: Mapping[str, Any] | None) -> list[str]:
    if summary is None:
        return []
    counts, scoring = summary["counts"], summary["scoring"]
    return [
        f"selected {counts['selected']:,} of {counts['pool']:,} samples by {summary['strategy']}",
        f"scored {scoring['tokens']:,} tokens ({scoring['tokens_per_second']:,.0f}/s)",
    ]


def _read(folder: Folder, name: str) -> dict[str, Any] | None:
    """The content of a JSON file, or None where there is no such file."""
    raw = folder.read_bytes(name)
    if raw is None:
        return None
    try:
        value = json.loads(raw)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise UserError(f"{join(folder.path, name)} is not what a run writes")
    return value


def _modified(folder: Folder, name: str) -> datetime | None:
    fs, path = open_filesystem(join(folder.path, name))
    written: datetime | None = fs.get_file_info(path).mtime
    return None if written is None else written.astimezone(UTC)
