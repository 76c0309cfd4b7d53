"""Remote folders on this machine's disk, for libraries that read local files only.

The copies of a machine may take half of the disk that is free without them. Where another needs
room, those that were not used for longest go first, but none that a process uses.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from filelock import FileLock
from pyarrow import fs as pafs

from instructdiff_ray.errors import UserError
from instructdiff_ray.storage.artifacts import make_key
from instructdiff_ray.storage.filesystem import is_uri, open_filesystem

# Copies that this process uses → the descriptor whose shared lock it holds for as long as it lives.
_in_use: dict[Path, int] = {}
GONE = ".gone"  # how the name of a copy ends that is being deleted


def cache_folder() -> Path:
    """The user's folder for what can be had again."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "instructdiff_ray"
    cache.mkdir(parents=True, exist_ok=True)
    return cache


def local_copy(path: str) -> str:
    """`path` itself where it is local; else a copy of the remote folder on this machine's disk.

    The copy is made once a machine, under the user's cache folder, and appears complete or not at
    all, so that the actors of a node can ask at the same time. It stays while this process lives.
    """
    if not is_uri(path):
        return path
    fs, remote = open_filesystem(path)
    infos = fs.get_file_info(pafs.FileSelector(remote, allow_not_found=True, recursive=True))
    files = [info for info in infos if info.is_file]
    if not files:
        raise UserError(f"{path} does not exist or is no folder")
    identity = sorted((f.path, f.size, f.mtime_ns) for f in files)
    target = cache_folder() / make_key(path=path, files=identity)
    # The actors of a machine ask at once, and a model is large: one copies, the others wait.
    with FileLock(f"{target}.lock"):
        _use(target)
        if not target.exists():
            part = target.with_name(f"{target.name}.part")
            shutil.rmtree(part, ignore_errors=True)  # of a process that was killed
            _make_room(sum(f.size for f in files))
            part.mkdir()
            with ExitStack() as undo:
                undo.callback(shutil.rmtree, part)
                pafs.copy_files(remote, str(part), source_filesystem=fs)
                undo.pop_all()
            part.rename(target)
        os.utime(target)
    return str(target)


def _users(copy: Path) -> Path:
    """The file on which every process that uses the copy holds a shared lock."""
    return copy.with_name(f"{copy.name}.used")


def _use(copy: Path) -> None:
    if copy not in _in_use:
        _in_use[copy] = os.open(_users(copy), os.O_CREAT | os.O_RDWR)
        fcntl.flock(_in_use[copy], fcntl.LOCK_SH)


def _make_room(size: int) -> None:
    """Delete copies until one of this size has its place."""
    cache = cache_folder()
    for path in cache.glob(f"*{GONE}"):  # whoever was to delete it may have been killed
        shutil.rmtree(path, ignore_errors=True)
    copies: list[tuple[float, int, Path]] = []
    for copy in (path for path in cache.iterdir() if _users(path).exists()):
        with suppress(FileNotFoundError):  # another process deletes it
            sizes = [file.stat().st_size for file in copy.rglob("*") if file.is_file()]
            copies.append((copy.stat().st_mtime, sum(sizes), copy))
    taken = sum(of_copy for _, of_copy, _ in copies)
    most = (shutil.disk_usage(cache).free + taken) / 2
    for _, of_copy, copy in sorted(copies):
        if taken + size <= most:
            return
        if _delete_unused(copy):
            taken -= of_copy


def _delete_unused(copy: Path) -> bool:
    """Delete a copy; False where a process uses it."""
    users = os.open(_users(copy), os.O_RDWR)
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _rename_and_delete(str(copy))
    except BlockingIOError:
        return False
    finally:
        os.close(users)
    return True


def _rename_and_delete(copy: str) -> None:
    # What is half deleted must not be taken for a copy.
    gone = f"{copy}.{uuid4().hex}{GONE}"
    with suppress(OSError):  # another process does the same
        os.rename(copy, gone)
    shutil.rmtree(gone, ignore_errors=True)


@contextmanager
def temporary_copy(path: str) -> Iterator[str]:
    """`local_copy` for as long as the block runs: for what is read in one training only.

    Of the processes of a machine that share the copy the first to leave deletes it, so they must
    have opened its files by then.
    """
    local = local_copy(path)
    try:
        yield local
    finally:
        if local != path:
            _rename_and_delete(local)
