"""What killed runs have left in storage: attempts that no manifest names, snapshots of scores that
have none, and parts of files.

A run that is alive may still write to such a thing. It is told from what is dead by the age of its
files and, on a local file system, by the artifact's lock. In an object store, whose leases run out,
age alone decides; and of two runs that made the same artifact at once there, the attempt of
the earlier is named by no manifest, though that run goes on reading it.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from filelock import FileLock, Timeout
from pyarrow import fs as pafs

from instructdiff_ray.storage.artifacts import ATTEMPT, MANIFEST
from instructdiff_ray.storage.filesystem import Folder, is_uri, join, open_filesystem
from instructdiff_ray.storage.locks import LOCK

# The files of an attempt at an artifact, `<kind>/<key>/attempt-…`, and what was written of a file
# before it was given its name. Nothing else in a storage, least of all `runs/`, is looked at.
ATTEMPT_FILE = re.compile(rf"([a-z-]+/[0-9a-f]{{16}}/{ATTEMPT}[0-9a-f]{{12}})/.+")
SNAPSHOT_FILE = re.compile(r"(pieces/[0-9a-f]{16}/snapshot-[0-9a-f]{12})/.+")
PART_FILE = re.compile(r"[a-z-]+/[0-9a-f]{16}/.+\.[0-9a-f]{32}\.part")


@dataclass(frozen=True)
class Leftover:
    """A file or folder of a killed run, by its name in storage. size: bytes; age_s: seconds since
    its last file was written."""

    name: str
    size: int
    age_s: float


def find_leftovers(storage: Folder, min_age_s: float) -> list[Leftover]:
    """All that killed runs have left and not touched for `min_age_s` seconds, by name."""
    files: dict[str, list[pafs.FileInfo]] = defaultdict(list)
    for name, info in _files(storage):
        if folder := ATTEMPT_FILE.fullmatch(name) or SNAPSHOT_FILE.fullmatch(name):
            files[folder.group(1)].append(info)
        elif PART_FILE.fullmatch(name):
            files[name].append(info)
    leftovers = (_leftover(name, infos) for name, infos in sorted(files.items()))
    return [
        leftover
        for leftover in leftovers
        if leftover.age_s >= min_age_s and not _is_needed(storage, leftover.name)
    ]


def delete_leftover(storage: Folder, leftover: Leftover) -> bool:
    """Delete it; False where a run has taken it up meanwhile."""
    with _locked(storage, leftover.name) as locked:
        if not locked or _is_named(storage, leftover.name):
            return False
        storage.delete(leftover.name)
        return True


def _files(storage: Folder) -> Iterator[tuple[str, pafs.FileInfo]]:
    fs, root = open_filesystem(storage.path)
    prefix = len(root.rstrip("/")) + 1
    for info in fs.get_file_info(pafs.FileSelector(root, allow_not_found=True, recursive=True)):
        if info.is_file:
            yield info.path[prefix:], info


def _leftover(name: str, infos: list[pafs.FileInfo]) -> Leftover:
    # A file without a date may have been written now.
    written = max(time.time() if info.mtime_ns is None else info.mtime_ns / 1e9 for info in infos)
    return Leftover(name, sum(info.size for info in infos), time.time() - written)


def _is_needed(storage: Folder, name: str) -> bool:
    if _is_named(storage, name):
        return True
    if is_uri(storage.path) or not os.path.exists(_lock_path(storage, name)):
        return False
    with _locked(storage, name) as locked:
        return not locked


def _is_named(storage: Folder, name: str) -> bool:
    """Whether it is the attempt that the artifact's manifest names: then it is the artifact; or a
    snapshot with a manifest."""
    if SNAPSHOT_FILE.fullmatch(f"{name}/{MANIFEST}"):
        return storage.read_bytes(join(name, MANIFEST)) is not None
    home, _, attempt = name.rpartition("/")
    try:
        manifest = json.loads(storage.read_bytes(join(home, MANIFEST)) or b"null")
    except ValueError:
        return False
    return isinstance(manifest, dict) and manifest.get("attempt") == attempt


@contextmanager
def _locked(storage: Folder, name: str) -> Iterator[bool]:
    """Keeps other runs from making the artifact; False where one is making it."""
    if is_uri(storage.path):
        yield True
        return
    lock = FileLock(_lock_path(storage, name))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _lock_path(storage: Folder, name: str) -> str:
    kind, key = name.split("/")[:2]
    return join(storage.path, kind, key, LOCK)
