"""What killed runs have left in storage: attempts that no manifest names, and parts of files.

Neither is ever read, nor counted as finished. What a run may still be writing is told from them by
its age and, on a local file system, by the artifact's lock.
"""

from __future__ import annotations

import json
import re
import time
from collections import defaultdict
from dataclasses import dataclass

from filelock import FileLock, Timeout
from pyarrow import fs as pafs

from instructdiff_ray.storage.artifacts import ATTEMPT, LOCK, MANIFEST
from instructdiff_ray.storage.filesystem import Folder, is_uri, join, open_filesystem

PART_FILE = re.compile(r"\.[0-9a-f]{32}\.part$")  # as Folder.write_bytes names them


@dataclass(frozen=True)
class Leftover:
    """A file or folder of a killed run, by its name in storage. size: bytes; age_s: seconds since
    its last file was written."""

    name: str
    size: int
    age_s: float


def find_leftovers(storage: Folder, min_age_s: float) -> list[Leftover]:
    """All that killed runs have left and not touched for `min_age_s` seconds, by name."""
    attempts: dict[str, list[pafs.FileInfo]] = defaultdict(list)
    leftovers = []
    now = time.time()
    for name, info in _entries(storage):
        kind_key_attempt = name.split("/")[:3]
        if len(kind_key_attempt) == 3 and kind_key_attempt[2].startswith(ATTEMPT):
            attempts["/".join(kind_key_attempt)].append(info)
        elif info.is_file and PART_FILE.search(name):
            leftovers.append(_leftover(name, [info], now))
    leftovers += [
        _leftover(name, infos, now)
        for name, infos in attempts.items()
        if not _is_named(storage, name) and not _is_locked(storage, name)
    ]
    old = (leftover for leftover in leftovers if leftover.age_s >= min_age_s)
    return sorted(old, key=lambda leftover: leftover.name)


def _entries(storage: Folder) -> list[tuple[str, pafs.FileInfo]]:
    fs, root = open_filesystem(storage.path)
    infos = fs.get_file_info(pafs.FileSelector(root, allow_not_found=True, recursive=True))
    prefix = len(root.rstrip("/")) + 1
    return [(info.path[prefix:], info) for info in infos]


def _leftover(name: str, infos: list[pafs.FileInfo], now: float) -> Leftover:
    written = max((info.mtime_ns or 0) for info in infos) / 1e9
    return Leftover(name, sum(info.size or 0 for info in infos if info.is_file), now - written)


def _is_named(storage: Folder, attempt: str) -> bool:
    """Whether the artifact's manifest names this attempt: then it is the artifact."""
    home, _, name = attempt.rpartition("/")
    try:
        manifest = json.loads(storage.read_bytes(join(home, MANIFEST)) or b"null")
    except ValueError:
        return False
    return isinstance(manifest, dict) and manifest.get("attempt") == name


def _is_locked(storage: Folder, attempt: str) -> bool:
    """Whether a run that is alive makes this artifact."""
    if is_uri(storage.path):
        return False
    lock = FileLock(join(storage.path, attempt.rpartition("/")[0], LOCK))
    try:
        with lock.acquire(timeout=0):
            return False
    except Timeout:
        return True
