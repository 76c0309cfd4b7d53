"""What killed runs leave is found and removed, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from instructdiff_ray.storage.artifacts import Artifact, Storage
from instructdiff_ray.storage.cleanup import find_leftovers
from instructdiff_ray.storage.filesystem import Folder

ROOT = Path(__file__).resolve().parents[2]
MONTH_S = 30 * 24 * 3600


def leave_attempt(artifact: Artifact, name: str) -> str:
    """What a writer that was killed leaves; gives its name in storage."""
    artifact.writer_at(name).folder.write_bytes("part.bin", b"12345")
    return f"{artifact.kind}/{artifact.key}/{name}"


def age(folder: Path) -> None:
    """As if all of it had been written a month ago."""
    then = time.time() - MONTH_S
    for path in [*folder.rglob("*"), folder]:
        os.utime(path, (then, then))


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "storage"))


def names(storage: Storage, min_age_s: float = 60) -> list[str]:
    return [leftover.name for leftover in find_leftovers(Folder(storage.root), min_age_s)]


def test_attempts_that_no_manifest_names_and_parts_of_files_are_found(storage: Storage) -> None:
    finished, absent = storage.artifact("models", "a"), storage.artifact("scores", "b")
    with finished.writer() as writer:
        writer.folder.write_bytes("model.bin", b"1234567")
        writer.finish({}, {})
    left = [leave_attempt(finished, "attempt-1"), leave_attempt(absent, "attempt-2")]
    shards = Path(storage.root, "pieces/c")
    shards.mkdir(parents=True)
    (shards / "piece-1.parquet").touch()
    part = shards / f"piece-2.parquet.{'0' * 32}.part"
    part.write_bytes(b"123")
    assert names(storage) == []  # they may belong to a run that is alive
    age(Path(storage.root))
    assert names(storage) == [left[0], f"pieces/c/{part.name}", left[1]]
    sizes = [leftover.size for leftover in find_leftovers(Folder(storage.root), 60)]
    assert sizes == [5, 3, 5]


def test_what_a_run_is_making_now_is_left(storage: Storage) -> None:
    artifact = storage.artifact("models", "a")
    attempt = leave_attempt(artifact, "attempt-1")
    with artifact.lock(print):
        age(Path(storage.root))
        assert names(storage) == []
    assert names(storage) == [attempt]


@pytest.mark.parametrize("manifest", [b"", b"{", b"[]", b'{"attempt": 5}'])
def test_a_damaged_manifest_names_nothing(storage: Storage, manifest: bytes) -> None:
    artifact = storage.artifact("models", "a")
    attempt = leave_attempt(artifact, "attempt-1")
    artifact.home.write_bytes("manifest.json", manifest)
    age(Path(storage.root))
    assert names(storage) == [attempt]


def clean(*arguments: str) -> tuple[int, str, str]:
    job = subprocess.run(
        [sys.executable, str(ROOT / "jobs/clean.py"), *arguments], capture_output=True, text=True
    )
    return job.returncode, job.stdout, job.stderr


def test_the_job_shows_first_and_removes_when_told_to(storage: Storage) -> None:
    artifact = storage.artifact("models", "a")
    with artifact.writer() as writer:
        writer.folder.write_bytes("model.bin", b"1234567")
        writer.finish({}, {})
    attempt = Path(storage.root, leave_attempt(artifact, "attempt-1"))
    assert clean(storage.root) == (0, f"nothing to remove in {storage.root}\n", "")
    age(Path(storage.root))
    status, output, _ = clean(storage.root)
    assert status == 0 and "models/a/attempt-1" in output and "--delete" in output
    assert attempt.exists()
    assert clean(storage.root, "--delete")[0] == 0
    assert not attempt.exists() and artifact.finished() is not None
    assert clean(storage.root)[1].startswith("nothing to remove")


def test_a_storage_that_is_not_there_is_the_users_error(tmp_path: Path) -> None:
    status, _, error = clean(str(tmp_path / "nowhere"))
    assert status == 1 and error.startswith("error: ") and error.count("\n") == 1
