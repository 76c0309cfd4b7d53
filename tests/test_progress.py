"""What stage, how far, how fast: one line on a terminal, a few in a log."""

from __future__ import annotations

import io
import re
import threading

import pytest

from instructdiff_ray import progress as module
from instructdiff_ray.progress import Progress, Stage, duration


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def work(
    progress: Progress, clock: Clock, steps: int, step_s: float = 1.0, size: int = 100
) -> None:
    """A stage of `steps` steps, each of `size` rows and `step_s` seconds."""
    with progress.stage("score", "rows", total=steps * size) as stage:
        for _ in range(steps):
            clock.now += step_s
            stage.add(size)


def test_a_log_gets_a_line_at_the_start_now_and_then_and_at_the_end(clock: Clock) -> None:
    log = io.StringIO()
    work(Progress(log, log_every_s=10), clock, steps=40)
    lines = log.getvalue().splitlines()
    assert len(lines) == 1 + 4 + 1
    assert lines[0].split() == ["score", "started"]
    assert lines[1] == "score          25%  1,000 rows (100/s), about 30 s left"
    assert lines[3] == "score          75%  3,000 rows (100/s), about 10 s left"
    assert lines[-1] == "score         4,000 rows in 40 s (100/s)"
    assert not re.search(r"[\r\x1b]", log.getvalue())


def test_a_terminal_has_one_line_that_is_rewritten_in_place(clock: Clock) -> None:
    terminal = Terminal()
    work(Progress(terminal), clock, steps=50, step_s=0.1)
    text = terminal.getvalue()
    assert text.count("\n") == 1
    assert text.endswith("\n")
    shown = [line.rstrip() for line in text.split("\r\x1b[K")]
    assert shown[0] == ""
    # Ten steps a second, and five lines a second at most.
    assert 20 <= len(shown) <= 28
    assert shown[-1] == "score         5,000 rows in 5 s (1,000/s)"


def test_work_in_another_measure_than_the_count_gives_the_percentage(clock: Clock) -> None:
    log = io.StringIO()
    with Progress(log, log_every_s=0).stage("ingest", "rows", total=1000) as stage:
        clock.now += 10
        stage.add(7, work=250, note="3 files")
        clock.now += 10
        stage.add(7, work=2000)
    lines = log.getvalue().splitlines()
    assert lines[1] == "ingest         25%  7 rows (0.7/s), about 30 s left, 3 files"
    # What was to do may be underestimated; more than all of it is never done.
    assert lines[2] == "ingest        100%  14 rows (0.7/s), about 0 s left"


@pytest.mark.parametrize("total", [None, 0])
def test_without_a_total_there_is_a_count_and_a_speed_and_no_percentage(
    clock: Clock, total: int | None
) -> None:
    log = io.StringIO()
    with Progress(log, log_every_s=0).stage("ingest", "rows", total) as stage:
        stage.add(0)
        clock.now += 2
        stage.add(50)
    _, nothing, some, end = log.getvalue().splitlines()
    assert nothing == "ingest        0 rows"
    assert some == "ingest        50 rows (25/s)"
    assert end == "ingest        50 rows in 2 s (25/s)"


def test_a_stage_that_fails_ends_its_line_and_lets_the_error_through(clock: Clock) -> None:
    terminal = Terminal()
    progress = Progress(terminal)
    with pytest.raises(KeyError), progress.stage("score", "rows", 100):
        clock.now += 3
        raise KeyError
    assert terminal.getvalue().endswith("score         ended in 3 s\n")
    assert progress.seconds == {"score": 3.0}


def test_the_seconds_of_a_stage_add_up_over_its_rounds(clock: Clock) -> None:
    progress = Progress(io.StringIO())
    for steps in (2, 3):
        work(progress, clock, steps)
    with progress.stage("select", "rows") as stage:
        clock.now += 0.5
        assert isinstance(stage, Stage)
    assert progress.seconds == {"score": 5.0, "select": 0.5}


def test_lines_go_to_standard_output_unless_a_stream_is_given(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Progress().say("pool: 3 rows")
    assert capsys.readouterr().out == "pool: 3 rows\n"


def test_real_time_gives_a_speed_and_not_an_error() -> None:
    log = io.StringIO()
    with Progress(log, log_every_s=0).stage("score", "rows", 10) as stage:
        stage.add(10)
    assert re.fullmatch(r"score         10 rows in .+ \([\d,.]+/s\)", log.getvalue().split("\n")[2])


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0 s"),
        (0.4, "0 s"),
        (8.4, "8 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (250, "4 min 10 s"),
        (3599.6, "1 h 00 min"),
        (3 * 3600 + 5 * 60 + 59, "3 h 05 min"),
        (100 * 3600, "100 h 00 min"),
    ],
)
def test_a_duration_reads_as_a_person_says_it(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_a_stage_that_does_nothing_says_why_and_one_that_works_does_not() -> None:
    log, asked = io.StringIO(), threading.Event()

    def why_idle() -> str:
        if len(log.getvalue().splitlines()) > 1:
            asked.set()
        return "waiting for 8 GPUs"

    progress = Progress(log, why_idle=why_idle, idle_s=0.02)
    with progress.stage("score", "rows"):
        assert asked.wait(60)  # for the second time: it was said
    lines = log.getvalue().splitlines()
    assert lines[1] == "waiting for 8 GPUs"
    assert lines[-1].split()[:2] == ["score", "ended"]
    busy = Progress(io.StringIO(), why_idle=lambda: pytest.fail("it works"), idle_s=3600)
    with busy.stage("score", "rows") as stage:
        stage.add(1)
