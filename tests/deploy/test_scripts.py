"""deploy/: the script for Slurm, and what the Dockerfile takes of the repository."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"


def linter(name: str) -> str:
    """Where it is: beside Python, or on the path."""
    beside = str(Path(sys.executable).parent)
    found = shutil.which(name, path=beside) or shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not on this machine")
    return found


@pytest.mark.parametrize(("tool", "file"), [("shellcheck", "slurm.sh"), ("hadolint", "Dockerfile")])
def test_a_linter_finds_nothing(tool: str, file: str) -> None:
    job = subprocess.run([linter(tool), str(DEPLOY / file)], capture_output=True, text=True)
    assert job.returncode == 0, job.stdout + job.stderr


def test_the_image_gets_all_that_a_job_needs() -> None:
    """Each file that is copied is in the repository, and reaches the builder."""
    copies = re.findall(r"^COPY (?!--from)(.+)$", (DEPLOY / "Dockerfile").read_text(), re.M)
    copied = {source for copy in copies for source in copy.split()[:-1]}
    allowed = re.findall(r"^!(.+)$", (DEPLOY / "Dockerfile.dockerignore").read_text(), re.M)
    assert copied == set(allowed)
    assert all((ROOT / source).exists() for source in copied)
    assert {"jobs", "conf", "instructdiff_ray", "requirements.lock"} <= copied
