"""Killing on purpose: workers of this test's own Ray, and whole runs of the command line."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil


def ray_workers(title: str) -> list[psutil.Process]:
    """Ray's workers below this process that call themselves `ray::<title>…`."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            command = process.cmdline()
        except psutil.Error:
            continue
        if command and command[0].startswith(f"ray::{title}"):
            found.append(process)
    return found


@contextmanager
def killing(title: str, when: Callable[[], bool], times: int = 1) -> Iterator[list[int]]:
    """While the block runs: `kill -9` of a worker each time that `when` says so.

    Gives the list of those killed; fails where the block ended before all were.
    """
    killed: list[int] = []
    done = threading.Event()

    def watch() -> None:
        while not done.is_set() and len(killed) < times:
            if when() and (workers := [w for w in ray_workers(title) if w.pid not in killed]):
                os.kill(workers[0].pid, signal.SIGKILL)
                killed.append(workers[0].pid)
            time.sleep(0.01)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield killed
    finally:
        done.set()
        watcher.join()
    assert len(killed) == times, f"only {killed} of {times} were killed"


@contextmanager
def started(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The command in a session of its own; at the block's end nothing of that session is left."""
    with log.open("w") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream, start_new_session=True)
    try:
        yield process
    finally:
        end_session(process)


def end_session(process: subprocess.Popen[bytes], patience_s: float = 3) -> None:
    """Wait a little until a process and all that it started are gone; end what stays.

    `ray stop` would end every Ray of this machine.
    """
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline and (process.poll() is None or _session(process.pid)):
        time.sleep(0.1)
    if process.poll() is None:
        process.kill()
        process.wait()
    # Workers have process groups of their own, but share the session.
    while left := _session(process.pid):
        for each in left:
            each.kill()
        psutil.wait_procs(left, timeout=5)


def _session(leader: int) -> list[psutil.Process]:
    return [each for each in psutil.process_iter() if _session_of(each.pid) == leader]


def _session_of(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None
