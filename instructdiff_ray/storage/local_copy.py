"""Remote folders on this machine's disk, for libraries that read local files only."""

from __future__ import annotations

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


def local_copy(path: str) -> str:
    """`path` itself where it is local; else a copy of the remote folder on this machine's disk.

    The copy is made once a machine, under the user's cache folder, and appears complete or not at
    all, so that the actors of a node can ask at the same time.
    """
    if not is_uri(path):
        return path
    fs, remote = open_filesystem(path)
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "instructdiff_ray"
    files = fs.get_file_info(pafs.FileSelector(remote, allow_not_found=True, recursive=True))
    if not files:
        raise UserError(f"{path} does not exist or is no folder")
    identity = sorted((f.path, f.size, f.mtime_ns) for f in files if f.is_file)
    target = cache / make_key(path=path, files=identity)
    cache.mkdir(parents=True, exist_ok=True)
    # The actors of a machine ask at once, and a model is large: one copies, the others wait.
    with FileLock(f"{target}.lock"):
        if not target.exists():
            part = cache / f"{target.name}.part"
            shutil.rmtree(part, ignore_errors=True)  # of a process that was killed
            part.mkdir()
            with ExitStack() as undo:
                undo.callback(shutil.rmtree, part)
                pafs.copy_files(remote, str(part), source_filesystem=fs)
                undo.pop_all()
            part.rename(target)
    return str(target)


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
            # Renamed first: what is half deleted must not be taken for a copy.
            gone = f"{local}.{uuid4().hex}"
            with suppress(OSError):  # the others leave at the same time
                os.rename(local, gone)
            shutil.rmtree(gone, ignore_errors=True)
