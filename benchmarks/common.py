"""What every benchmark needs: a description of the machine, a place for results, and the memory
of this process."""

from __future__ import annotations

import json
import os
import platform
import re
import threading
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """The machine that the figures hold for."""
    cpu_names = re.findall(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    return {
        "cpu": cpu_names[0] if cpu_names else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "gpu": gpu,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def result_path(name: str) -> Path:
    """`results/NAME-MACHINE.json`."""
    description = machine()
    label = description["gpu"] or f"{description['cores']}-cores"
    slug = re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")
    return RESULTS / f"{name}-{slug}.json"


def save(name: str, result: dict[str, Any]) -> None:
    """Write `results/NAME-MACHINE.json` and print its path."""
    description, path = machine(), result_path(name)
    RESULTS.mkdir(exist_ok=True)
    packages = {package: version(package) for package in ("torch", "pyarrow", "numpy")}
    text = json.dumps({"machine": description, "packages": packages, **result}, indent=2)
    path.write_text(text + "\n")
    print(f"written: {path}")


def reset_peak() -> None:
    """Forget this process's peak of resident memory (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_mib() -> float:
    """This process's peak of resident memory since `reset_peak`, in MiB."""
    match = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match
    return int(match.group(1)) / 1024


class OwnMemory:
    """The peak of what this process itself holds, in MiB: without pages of files, which the kernel
    drops when others need the room. It is looked at a hundred times a second (Linux)."""

    def __init__(self) -> None:
        self.peak = self.now()
        self.ended = threading.Event()
        self.watch = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> OwnMemory:
        self.watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.watch.join()

    @staticmethod
    def now() -> float:
        match = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
        assert match
        return int(match.group(1)) / 1024

    def _look(self) -> None:
        while not self.ended.wait(0.01):
            self.peak = max(self.peak, self.now())
