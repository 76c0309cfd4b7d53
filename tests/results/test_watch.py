"""`progress.json` as a command runs: what it says, how often it is written, and what can't hurt."""

from __future__ import annotations

import io
import json
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from instructdiff_ray.context import RunContext
from instructdiff_ray.errors import UserError
from instructdiff_ray.progress import Progress
from instructdiff_ray.results import watch as module
from instructdiff_ray.results.status import FAILED, FINISHED, PROGRESS, RUNNING
from instructdiff_ray.results.watch import Watch, failure_line, watched
from instructdiff_ray.storage.filesystem import Folder
from tests.s3 import Server


def read(context: RunContext) -> dict[str, Any]:
    return json.loads(context.folder.read_bytes(PROGRESS) or b"")


def test_it_follows_the_stages_while_they_run_and_says_how_it_ended(
    context: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "UPDATE_EVERY_S", 0.01)
    with watched(context, "run"):
        with context.progress.stage("ingest", "rows") as stage:
            stage.add(20)
        with context.progress.stage("score", "samples", total=4000) as stage:
            stage.add(25, work=1000, note="10 tokens/s")
            while len(read(context)["stages"]) < 2:
                time.sleep(0.01)
            running = read(context)
    ingest, score = running["stages"]
    assert running["state"] == RUNNING and running["error"] is None
    assert (running["command"], running["run_dir"]) == ("run", context.folder.path)
    assert running["models"] == {"base": context.base.path}
    assert (ingest["count"], ingest["unit"], ingest["ended"]) == (20, "rows", True)
    assert ingest["total"] is ingest["share"] is ingest["expected_end"] is None
    assert (score["count"], score["work"], score["total"], score["share"]) == (25, 1000, 4000, 0.25)
    assert not score["ended"] and score["rate"] > 0 and score["note"] == "10 tokens/s"
    assert datetime.fromisoformat(score["expected_end"]) >= datetime.fromisoformat(running["began"])
    finished = read(context)
    assert finished["state"] == FINISHED
    assert [stage["ended"] for stage in finished["stages"]] == [True, True]
    assert not list(Path(context.folder.path).glob("*.part"))


def test_a_command_that_fails_leaves_its_line_and_its_error_goes_on(context: RunContext) -> None:
    with pytest.raises(UserError, match="no room"), watched(context, "score.py"):
        raise UserError("no room\nat all")
    assert (read(context)["state"], read(context)["error"]) == (FAILED, "no room at all")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (KeyboardInterrupt(), "it was stopped; the same command goes on where it stopped"),
        (SystemExit(15), "it was stopped; the same command goes on where it stopped"),
        (ValueError("a\n\n  last line \n"), "ValueError: last line"),
        (KeyError(), "KeyError: "),
        (OSError(28, "No space left on device"), "the disk is full"),
        (RuntimeError("x" * 10_000), "RuntimeError: xxxx"),
    ],
)
def test_whatever_ends_a_command_is_told_in_one_line(error: BaseException, line: str) -> None:
    told = failure_line(error)
    assert told.startswith(line) and "\n" not in told and len(told) <= 500


def test_where_it_can_t_be_written_the_command_goes_on_and_it_is_written_when_it_can(
    context: RunContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "UPDATE_EVERY_S", 0.01)
    obstacle = tmp_path / "run"
    obstacle.write_text("a file where the folder should be")
    log = io.StringIO()
    with watched(replace(context, progress=Progress(log)), "run"):
        time.sleep(0.1)
        assert obstacle.is_file()
        obstacle.unlink()
    assert read(context)["state"] == FINISHED
    assert log.getvalue().count("progress.json can't be written now") == 1


def test_an_object_store_is_written_to_now_and_then_and_at_the_end(
    context: RunContext, s3: Server, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    now = datetime(2026, 1, 1, tzinfo=UTC)
    monkeypatch.setattr(module, "_now", lambda: now)
    context = replace(context, folder=Folder(f"{bucket}/watch"))
    watch, written = Watch(context, "run"), []
    for _ in range(14):
        watch.update()
        written.append(read(context)["updated"])
        now += timedelta(seconds=5)
    assert len(set(written)) == 3  # at 0, 30 and 60 seconds
    watch.update(FINISHED)
    assert read(context)["state"] == FINISHED
