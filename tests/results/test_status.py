"""What `instructdiff status` says of a run's folder, as it stands and as time goes by."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from instructdiff_ray.commands.cli import main
from instructdiff_ray.errors import UserError
from instructdiff_ray.results.status import (
    FAILED,
    FINISHED,
    RUNNING,
    SILENT,
    SILENT_AFTER_S,
    run_status,
)
from instructdiff_ray.storage.filesystem import Folder

ROOT = Path(__file__).resolve().parents[2]
BEGAN = datetime(2026, 11, 26, 3, 0, tzinfo=UTC)
UPDATED = BEGAN + timedelta(minutes=10)
SUMMARY = {
    "strategy": "instructdiff",
    "counts": {"selected": 282, "pool": 2831},
    "scoring": {"tokens": 985_368, "tokens_per_second": 31_350.4},
}


def stage(name: str, **values: Any) -> dict[str, Any]:
    ended = {"unit": "rows", "count": 3000, "work": 3000, "total": None, "seconds": 6.0}
    rest = {"ended": True, "note": "", "share": None, "rate": 500.0, "expected_end": None}
    return {"name": name, **ended, **rest, **values}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that scores."""
    end = UPDATED + timedelta(seconds=30)
    score = {"unit": "samples", "count": 1000, "work": 25.0, "total": 100.0, "seconds": 10.0}
    score |= {"ended": False, "note": "900 tokens/s", "expected_end": end.isoformat()}
    progress = {
        "state": RUNNING,
        "error": None,
        "command": "run",
        "models": {"base": "/models/x"},
        "host": "head-1",
        "ray": {"job_id": "02000000", "submission_id": "raysubmit_x"},
        "began": BEGAN.isoformat(),
        "updated": UPDATED.isoformat(),
        "stages": [stage("ingest"), stage("score", **score)],
    }
    (tmp_path / "progress.json").write_text(json.dumps(progress))
    return tmp_path


def change(run: Path, **values: Any) -> None:
    file = run / "progress.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def leave_summary(run: Path, written: datetime) -> None:
    (run / "summary.json").write_text(json.dumps(SUMMARY))
    os.utime(run / "summary.json", (written.timestamp(), written.timestamp()))


def test_a_run_under_way_tells_stages_speed_expected_end_and_when_it_was_heard_of(
    run: Path,
) -> None:
    status = run_status(Folder(str(run)), UPDATED + timedelta(seconds=4))
    assert status.state == RUNNING
    assert status.lines == [
        "running, last heard of 4 s ago",
        "run on head-1, Ray job 02000000 raysubmit_x",
        "models: base /models/x",
        "began 2026-11-26 03:00:00 UTC",
        "  ingest        3,000 rows in 6 s (500/s)",
        "  score          25%  1,000 samples (100/s), about 30 s left, 900 tokens/s",
        "                to end at about 2026-11-26 03:10:30 UTC",
    ]


def test_a_run_that_was_not_heard_of_for_long_is_silent(run: Path) -> None:
    status = run_status(Folder(str(run)), UPDATED + timedelta(seconds=SILENT_AFTER_S + 1))
    assert status.state == SILENT
    assert status.lines[0].startswith("silent: last heard of 5 min 01 s ago")
    assert not any("to end at" in line for line in status.lines)


def test_a_failed_run_tells_its_line(run: Path) -> None:
    change(run, state=FAILED, error="the disk is full")
    later = run_status(Folder(str(run)), UPDATED + timedelta(days=3))
    assert (later.state, later.lines[0]) == (FAILED, "failed: the disk is full")


def test_a_finished_run_tells_what_it_selected_however_long_ago(run: Path) -> None:
    change(run, state=FINISHED)
    leave_summary(run, UPDATED)
    status = run_status(Folder(str(run)), UPDATED + timedelta(hours=3))
    assert (status.state, status.lines[0]) == (FINISHED, "finished, 3 h 00 min ago")
    assert status.lines[-2:] == [
        "selected 282 of 2,831 samples by instructdiff",
        "scored 985,368 tokens (31,350/s)",
    ]


def test_the_summary_of_an_earlier_run_in_the_folder_says_nothing_of_this_one(run: Path) -> None:
    leave_summary(run, BEGAN - timedelta(days=1))
    status = run_status(Folder(str(run)), UPDATED)
    assert status.state == RUNNING
    assert not any("selected" in line for line in status.lines)


def test_a_run_that_was_killed_when_its_summary_was_there_has_finished(run: Path) -> None:
    leave_summary(run, UPDATED + timedelta(seconds=1))
    status = run_status(Folder(str(run)), UPDATED + timedelta(days=1))
    assert status.state == FINISHED


def test_a_run_of_before_there_was_progress_has_its_summary(run: Path) -> None:
    (run / "progress.json").unlink()
    leave_summary(run, UPDATED)
    assert run_status(Folder(str(run)), UPDATED).state == FINISHED


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"state": "running"}'])
def test_what_no_run_has_written_is_refused_in_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "progress.json").write_text(content)
    with pytest.raises(UserError, match=r"progress\.json is n"):
        run_status(Folder(str(tmp_path)), UPDATED)


def status_of(folder: Path) -> int | str | None:
    """What `instructdiff status <folder>` ends with."""
    with pytest.raises(SystemExit) as ended:
        main(["status", str(folder)])
    return ended.value.code


def test_the_command_tells_people_by_lines_and_scripts_by_its_exit_status(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of(run) == 1
    assert capsys.readouterr().out.startswith("silent: ")
    change(run, updated=datetime.now(UTC).isoformat())
    assert status_of(run) == 0
    line = status_of(run / "nowhere")
    assert isinstance(line, str) and line.startswith("error: ") and "\n" not in line
