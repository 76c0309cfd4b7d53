"""What killed runs leave is found and removed, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from instructdiff_ray.scoring.origins import Origin, note_origin, origins_of
from instructdiff_ray.storage.artifacts import MANIFEST, Artifact, Storage
from instructdiff_ray.storage.cleanup import delete_leftover, find_leftovers
from instructdiff_ray.storage.filesystem import Folder
from instructdiff_ray.training.known_models import Training, note_training, training_of

ROOT = Path(__file__).resolve().parents[2]
MONTH_S = 30 * 24 * 3600
A, B, C = ("a" * 16, "b" * 16, "c" * 16)  # keys
FIRST, SECOND = (f"attempt-{number:012x}" for number in (1, 2))


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
    finished, absent = storage.artifact("models", A), storage.artifact("scores", B)
    with finished.writer() as writer:
        writer.folder.write_bytes("model.bin", b"1234567")
        writer.finish({}, {})
    left = [leave_attempt(finished, FIRST), leave_attempt(absent, SECOND)]
    shards = Path(storage.root, "pieces", C)
    shards.mkdir(parents=True)
    (shards / "piece-1.parquet").touch()
    part = shards / f"piece-2.parquet.{'0' * 32}.part"
    part.write_bytes(b"123")
    for number, files in enumerate((["scores-00000.parquet"], ["scores-00000.parquet", MANIFEST])):
        snapshot = shards / f"snapshot-{number:012x}"
        snapshot.mkdir()
        for name in files:
            (snapshot / name).write_bytes(b"{}")
    assert names(storage) == []  # they may belong to a run that is alive
    age(Path(storage.root))
    pieces = [f"pieces/{C}/{part.name}", f"pieces/{C}/snapshot-{0:012x}"]
    assert names(storage) == [left[0], *pieces, left[1]]
    sizes = [leftover.size for leftover in find_leftovers(Folder(storage.root), 60)]
    assert sizes == [5, 3, 2, 5]


def test_what_a_run_is_making_now_is_left(storage: Storage) -> None:
    artifact = storage.artifact("models", A)
    attempt = leave_attempt(artifact, FIRST)
    with artifact.lock(print):
        age(Path(storage.root))
        assert names(storage) == []
    assert names(storage) == [attempt]


@pytest.mark.parametrize("manifest", [b"", b"{", b"[]", b'{"attempt": 5}'])
def test_a_damaged_manifest_names_nothing(storage: Storage, manifest: bytes) -> None:
    artifact = storage.artifact("models", A)
    attempt = leave_attempt(artifact, FIRST)
    artifact.home.write_bytes("manifest.json", manifest)
    age(Path(storage.root))
    assert names(storage) == [attempt]


def test_notes_of_what_was_pulled_stay(storage: Storage) -> None:
    shards, model = storage.folder("pieces", A), storage.artifact("models", A)
    note_origin(shards, Origin("me/scores", "c" * 40, 5), "digest")
    note_training(model, Training({}, "0" * 16, 3), "me/scores")
    age(Path(storage.root))
    assert names(storage) == []
    assert origins_of([shards]) == [Origin("me/scores", "c" * 40, 5)]
    assert training_of(model) == Training({}, "0" * 16, 3)


def test_folders_of_runs_and_of_users_are_not_looked_at(storage: Storage) -> None:
    for name in ("runs/mine/attempt-1/summary.json", f"runs/{A}/{FIRST}.json", f"a/b/{FIRST}/c"):
        Folder(storage.root).write_bytes(name, b"{}")
    Folder(storage.root).write_bytes(f"notes.{'0' * 32}.part", b"x")
    age(Path(storage.root))
    assert names(storage) == []


def test_an_attempt_that_finished_since_it_was_found_stays(storage: Storage) -> None:
    artifact = storage.artifact("models", A)
    leave_attempt(artifact, FIRST)
    age(Path(storage.root))
    (leftover,) = find_leftovers(Folder(storage.root), 60)
    artifact.writer_at(FIRST).finish({}, {})
    assert not delete_leftover(Folder(storage.root), leftover)
    assert artifact.finished()


def test_one_that_a_run_has_begun_to_make_anew_stays(storage: Storage) -> None:
    artifact = storage.artifact("models", A)
    leave_attempt(artifact, FIRST)
    age(Path(storage.root))
    (leftover,) = find_leftovers(Folder(storage.root), 60)
    with artifact.lock(print):
        assert not delete_leftover(Folder(storage.root), leftover)
    assert delete_leftover(Folder(storage.root), leftover)
    assert names(storage) == []


def test_looking_writes_nothing(storage: Storage) -> None:
    leave_attempt(storage.artifact("models", A), FIRST)
    age(Path(storage.root))
    before = sorted(Path(storage.root).rglob("*"))
    assert names(storage)
    assert sorted(Path(storage.root).rglob("*")) == before


def test_in_an_object_store_what_is_being_written_has_no_age(bucket: str) -> None:
    storage = Storage(f"{bucket}/storage")
    artifact = storage.artifact("scores", A)
    old = leave_attempt(artifact, FIRST)
    with artifact.writer() as writer, writer.folder.open_output("scores.parquet") as stream:
        stream.write(b"1")
        # Of the file that is open only its folder shows, without a date.
        assert names(storage, min_age_s=0) == [old]
        assert names(storage) == []


def clean(*arguments: str) -> tuple[int, str, str]:
    job = subprocess.run(
        [sys.executable, str(ROOT / "jobs/clean.py"), *arguments], capture_output=True, text=True
    )
    return job.returncode, job.stdout, job.stderr


def test_the_job_shows_first_and_removes_when_told_to(storage: Storage) -> None:
    artifact = storage.artifact("models", A)
    with artifact.writer() as writer:
        writer.folder.write_bytes("model.bin", b"1234567")
        writer.finish({}, {})
    attempt = Path(storage.root, leave_attempt(artifact, FIRST))
    assert clean(storage.root) == (0, f"nothing to remove in {storage.root}\n", "")
    age(Path(storage.root))
    status, output, _ = clean(storage.root)
    assert status == 0 and f"models/{A}/{FIRST}" in output and "--delete" in output
    assert attempt.exists()
    assert clean(storage.root, "--delete")[0] == 0
    assert not attempt.exists() and artifact.finished() is not None
    assert clean(storage.root)[1].startswith("nothing to remove")


def test_a_storage_that_is_not_there_is_the_users_error(tmp_path: Path) -> None:
    status, _, error = clean(str(tmp_path / "nowhere"))
    assert status == 1 and error.startswith("error: ") and error.count("\n") == 1


@pytest.mark.parametrize("days", ["0", "-3", "nan"])
def test_what_a_run_may_still_write_is_not_for_removal(storage: Storage, days: str) -> None:
    leave_attempt(storage.artifact("models", A), FIRST)
    status, _, error = clean(storage.root, "--days", days)
    assert status == 1 and "must be 1 or more" in error


def test_in_an_object_store_the_age_must_be_named() -> None:
    status, _, error = clean("s3://bucket/storage", "--delete")
    assert status == 1 and "give --days" in error and error.count("\n") == 1
