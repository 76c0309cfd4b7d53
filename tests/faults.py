"""Killing on purpose, at a moment that is held: a model's processes, and whole runs.

A run that is to be hit at some moment is made to wait there. So no test depends on how fast the
machine is: where its pytest timeout ends one, what was waited for never came.
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from instructdiff_ray.config.data import ModelConfig
from instructdiff_ray.models.find import find_model
from instructdiff_ray.models.model import Model

# The few samples on which a scorer tries out a model when it loads it count too. So a gate that is
# to shut within a block, and not before it, lets this many more through.
TRIED_OUT = 20


def with_custom_code(model: Model, folder: Path, code: str, **settings: object) -> Model:
    """A copy of the model whose class is `CustomModel` of this code, and whose configuration has
    these settings besides."""
    model.load("fp32").save_pretrained(folder)
    model.load_tokenizer().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"auto_map": {"AutoModelForCausalLM": "custom.CustomModel"}, **settings}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "custom.py").write_text(code)
    return find_model(ModelConfig(base=str(folder), trust_remote_code=True))


@dataclass(frozen=True)
class Gate:
    """Where the forward passes of one model wait, in whatever process, while it is shut."""

    path: Path

    def model(self, model: Model, folder: Path) -> Model:
        """A copy of the model that waits here."""
        code = Path(__file__).with_name("gated.py").read_text()
        gated = with_custom_code(model, folder, code, gate=str(self.path))
        # Transformers copies the code to its cache when a process first loads it, and not
        # atomically: here, before several processes do at once.
        gated.load("fp32")
        return gated

    def shut(self, after: int) -> None:
        """Every process may pass with `after` samples, and waits with those that come next."""
        part = self.path.with_suffix(".part")
        part.write_text(str(after))
        part.replace(self.path)

    def open(self) -> None:
        """Whoever waits may pass; of those that were killed while they did no trace is left."""
        self.path.unlink(missing_ok=True)
        for mark in self.marks():
            mark.unlink(missing_ok=True)

    def marks(self) -> list[Path]:
        """One for each process that waits, or did when it was killed."""
        return list(self.path.parent.glob(f"{self.path.name}-*"))

    def arrival(self, ended: Callable[[], bool]) -> psutil.Process | None:
        """The next process that waits here, each given once; None if it `ended` and none came."""
        while True:
            over = ended()  # asked first: what came before the end is there by now
            for mark in self.marks():
                with suppress(FileNotFoundError):  # it has passed meanwhile
                    mark.unlink()
                    return psutil.Process(int(mark.name.rpartition("-")[2]))
            if over:
                return None
            time.sleep(0.02)


@contextmanager
def killing(gate: Gate, after: int, times: int = 1, then: int | None = None) -> Iterator[None]:
    """While the block runs: `kill -9` of a process that waits at the gate, `times` times.

    Ray starts it anew, and it comes to the gate again. At last the gate opens; or it lets `then`
    samples pass, and the test fails where more come, for what was done is done again.
    """
    done = threading.Event()

    def kill() -> None:
        for turn in range(times):
            process = gate.arrival(done.is_set)
            assert process, f"the block ended, and {turn} of {times} processes were killed"
            process.suspend()  # or it would pass with those that are for its successor
            if then is not None and turn == times - 1:
                gate.shut(then)
            process.kill()
        more = None if then is None else gate.arrival(done.is_set)
        assert more is None, f"more than {then} samples came after the last kill"

    gate.shut(after)
    with ThreadPoolExecutor(1) as threads:
        killed = threads.submit(kill)
        killed.add_done_callback(lambda _: gate.open())
        try:
            yield
        finally:
            done.set()
    killed.result()


@contextmanager
def mounted_disk(folder: Path, size: str) -> Iterator[Path]:
    """A disk of its own in a new folder; the test is skipped where this user may mount none."""
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if subprocess.run(["mount", *options], capture_output=True).returncode:
        pytest.skip("this user may not mount a disk")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@contextmanager
def started(
    command: list[str], log: Path, environment: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """The command in a session of its own; at the block's end nothing of that session is left."""
    with log.open("w") as stream:
        process = subprocess.Popen(
            command, env=environment, stdout=stream, stderr=stream, start_new_session=True
        )
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
        for process in left:
            process.kill()
        psutil.wait_procs(left, timeout=5)


def _session(leader: int) -> list[psutil.Process]:
    return [p for p in psutil.process_iter() if _session_of(p.pid) == leader]


def _session_of(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None
