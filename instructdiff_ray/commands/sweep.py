"""A sweep on a Ray cluster, a job for each point: `instructdiff sweep select.ratio=0.05,0.1 …`.

Takes the settings of `instructdiff run`, whose --help shows them, some with several values. Submits
a job for each combination to the job server (`--address`, RAY_API_SERVER_ADDRESS, or the cluster
that it runs on itself), `--parallel` at a time, follows them, and ends with the table of a sweep.
What is stopped stops its jobs; the same command with the same `run_dir` goes on where they stopped.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from ray.job_submission import JobStatus, JobSubmissionClient

from instructdiff_ray.context import run_name
from instructdiff_ray.errors import UserError, require
from instructdiff_ray.results.console import sweep_table
from instructdiff_ray.results.status import SUMMARY
from instructdiff_ray.storage.filesystem import Folder, is_uri, join

LOOK_EVERY_S = 5
# What the client raises where the server does not answer, or not as it should.
UNANSWERED = (OSError, RuntimeError)
LONGEST_LINE = 200
AGAIN = "the same command with this run_dir goes on where it stopped"


@dataclass(frozen=True)
class Point:
    """One combination of a sweep's values. job: its submission id; folder: takes its outputs."""

    settings: Sequence[str]
    job: str
    folder: str

    @property
    def chosen(self) -> dict[str, str]:
        return dict(setting.partition("=")[::2] for setting in self.settings)


def main(arguments: Sequence[str]) -> None:
    parser = ArgumentParser(
        prog="instructdiff sweep", description=__doc__, formatter_class=RawDescriptionHelpFormatter
    )
    parser.add_argument("settings", nargs="+", help="of `run`: name=value, name=value,value")
    parser.add_argument("--address", help="of the job server, such as http://localhost:8265")
    parser.add_argument("--parallel", type=int, default=4, help="jobs at a time (default: 4)")
    parser.add_argument("--python", default="python", help="that runs the jobs, on the cluster")
    parser.add_argument(
        "--runtime-env-json", default="{}", help="of the jobs, as `ray job submit` takes it"
    )
    given = parser.parse_intermixed_args(arguments)
    try:
        require(given.parallel >= 1, f"--parallel {given.parallel} must be 1 or more")
        points = split_points(given.settings)
        entry, uploaded = _entry()
        environment = {**uploaded, **_environment(given.runtime_env_json)}
        sweep = Sweep(_client(given.address), [given.python, *entry], environment)
        sys.exit(0 if sweep.run(points, given.parallel) else 1)
    except UserError as error:
        sys.exit(f"error: {error}")


def split_points(settings: Sequence[str]) -> list[Point]:
    """The points of a sweep. UserError where a setting is none, or where outputs would be lost."""
    try:
        overrides = OverridesParser.create().parse_overrides([*settings])
        choices = [_values(override) for override in overrides]
    except HydraException as error:
        raise UserError(" ".join(str(error).split())) from None
    fixed = dict(values[0].partition("=")[::2] for values in choices if len(values) == 1)
    for name in ("storage", "run_dir"):
        path = fixed.get(name, "" if name == "storage" else "/")
        require(
            is_uri(path) or os.path.isabs(path),
            f"{name}={path} must be one absolute path or URI, for jobs run in temporary folders",
        )
    name = run_name()
    base = fixed.pop("run_dir", None) or join(fixed["storage"], "runs", name)
    combinations = [
        [setting for setting in point if not setting.startswith("run_dir=")]
        for point in product(*choices)
    ]
    return [
        Point(point, f"sweep-{name}-{number}", join(base, str(number)))
        for number, point in enumerate(combinations)
    ]


def _values(override: Override) -> list[str]:
    """The settings that an override stands for, one for each of its values."""
    if not override.is_sweep_override():
        return [str(override.input_line)]
    key = override.get_key_element()
    require(override.is_discrete_sweep(), f"{key}: only lists of values can be swept over")
    return [f"{key}={value}" for value in override.sweep_string_iterator()]


def _entry() -> tuple[list[str], dict[str, str]]:
    """What a job runs with Python, and what is uploaded for it: a checkout; where the package is
    installed here, it is taken to be installed on the cluster too."""
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / "jobs" / "run.py").exists():
        return ["jobs/run.py"], {"working_dir": str(checkout)}
    return ["-m", "instructdiff_ray", "run"], {}


def _environment(text: str) -> Mapping[str, Any]:
    try:
        environment = json.loads(text)
    except ValueError as error:
        raise UserError(f"--runtime-env-json is no JSON: {error}") from None
    require(isinstance(environment, dict), "--runtime-env-json must be a JSON object")
    assert isinstance(environment, dict)
    return environment


def _client(address: str | None) -> JobSubmissionClient:
    try:
        return JobSubmissionClient(address)
    except (OSError, RuntimeError) as error:
        line = " ".join(str(error).split())
        raise UserError(f"no job server can be used ({line}); give --address") from None


@dataclass(frozen=True)
class Sweep:
    """Where and how the jobs of a sweep run. entry: their command, without its settings."""

    client: JobSubmissionClient
    entry: Sequence[str]
    environment: Mapping[str, Any]

    def run(self, points: Sequence[Point], parallel: int) -> bool:
        """Submit and follow all points, and print the table; whether all have succeeded."""
        waiting, running, failed = [*points], list[Point](), set[str]()
        with stopping(self.client, running):
            while waiting or running:
                while waiting and len(running) < parallel:
                    running.append(self._submit(waiting.pop(0)))
                time.sleep(LOOK_EVERY_S)
                for point in [*running]:
                    status = self._status(point)
                    if status and status.is_terminal():
                        running.remove(point)
                        if status != JobStatus.SUCCEEDED:
                            failed.add(point.job)
                        self._report(point, status)
        _say(f"\nall runs of the sweep\n{table(points, failed)}")
        return not failed

    def _submit(self, point: Point) -> Point:
        command = [*self.entry, *point.settings, f"run_dir={point.folder}"]
        try:
            self.client.submit_job(
                entrypoint=shlex.join(command),
                submission_id=point.job,
                runtime_env=dict(self.environment),
            )
        except UNANSWERED as error:
            raise UserError(
                f"{point.job} can't be submitted ({_line(error)}); those before it go on; {AGAIN}"
            ) from None
        _say(f"{point.job} submitted: {point.folder}")
        return point

    def _status(self, point: Point) -> JobStatus | None:
        """None where the job server does not answer now: a network fails for a while."""
        try:
            return self.client.get_job_status(point.job)
        except UNANSWERED as error:
            _say(f"the job server does not answer ({_line(error)}); trying again")
            return None

    def _report(self, point: Point, status: JobStatus) -> None:
        line = f"{point.job} {str(status).lower()}"
        if status == JobStatus.FAILED:
            lines: list[str] = []
            with suppress(*UNANSWERED):
                lines = self.client.get_job_logs(point.job).splitlines()
            errors = [text for text in lines if text.startswith("error: ")] or lines[-1:]
            line = "; ".join([line, *errors[:1], f"`ray job logs {point.job}` has all"])
        _say(line)


@contextmanager
def stopping(client: JobSubmissionClient, running: Sequence[Point]) -> Iterator[None]:
    """Stops the jobs that run where the block is ended by Ctrl-C, or by `ray job stop`."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # what is begun here is short
        for point in running:
            with suppress(*UNANSWERED):
                client.stop_job(point.job)
        jobs = ", ".join(point.job for point in running)
        raise UserError(f"stopped, and with it {jobs or 'no job'}; {AGAIN}") from None
    finally:
        signal.signal(signal.SIGTERM, before)


def table(points: Sequence[Point], failed: Collection[str] = ()) -> str:
    """The table of the sweep, from the summaries that its points have left. failed: jobs, in whose
    folders an earlier one may have left its own."""
    runs = []
    for point in points:
        summary = None if point.job in failed else Folder(point.folder).read_bytes(SUMMARY)
        runs.append((point.chosen, json.loads(summary) if summary else None))
    return sweep_table(runs)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:LONGEST_LINE] or type(error).__name__


def _say(line: str) -> None:
    print(line, flush=True)
