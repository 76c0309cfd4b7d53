"""Notes of how fast stages were."""

from __future__ import annotations

from pathlib import Path

import pytest

from instructdiff_ray.storage.artifacts import Storage
from instructdiff_ray.storage.speeds import SPEED, Speed, SpeedNote


def test_the_last_speed_counts_unless_next_to_nothing_was_measured(tmp_path: Path) -> None:
    note = SpeedNote(Storage(str(tmp_path)), stage="score", parameters=7)
    other = SpeedNote(Storage(str(tmp_path)), stage="score", parameters=8)
    assert note.read() is None
    note.write(Speed(0, 5.0, 0.0, 0))  # nothing was scored
    assert note.read() is None
    first = Speed(1000, 20.0, 30.0, 2)
    note.write(first)
    note.write(Speed(99, 1.0, 1.0, 1))  # what was left of a run that was cut off
    assert note.read() == first and other.read() is None
    note.write(later := Speed(100, 1.0, 1.0, 1))
    assert note.read() == later
    note.folder.write_bytes(SPEED, b"{}")  # of another version, or cut off
    assert note.read() is None


def test_what_no_process_computed_in_belongs_to_the_start() -> None:
    speed = Speed(tokens=6000, seconds=40.0, busy_s=60.0, processes=2, starts=2)
    assert speed.tokens_per_second == 100
    assert speed.start_s == pytest.approx((40 - 30) / 2)


def test_a_storage_that_fails_costs_the_note_alone(tmp_path: Path) -> None:
    (tmp_path / "speeds").write_text("no folder")
    note = SpeedNote(Storage(str(tmp_path)), stage="train")
    note.write(Speed(1000, 20.0, 30.0, 2))
    assert note.read() is None
