"""Artifacts: folders under one root that are finished or absent.

A key names the result by all that determines it. The files of an attempt at an artifact go to a
folder of the attempt's own, and `manifest.json`, written last and at once, names the attempt that
finished. So nothing needs a rename of a folder (object stores have none), a killed writer leaves
nothing that is taken for finished, and two runs that make the same artifact at the same time both
succeed: the later manifest wins, and either result is right.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout
from pyarrow import fs as pafs

from instructdiff_ray.errors import DamagedFile, UserError

MANIFEST = "manifest.json"
# How Parquet is written here: with a checksum in every page, for a disk may forget a bit.
PARQUET = {"compression": "zstd", "write_page_checksum": True}
VERIFIED = {"page_checksum_verification": True}


def make_key(**inputs: Any) -> str:
    """16 hex digits that stand for `inputs` (JSON values): equal inputs, equal key."""
    text = json.dumps(inputs, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def is_uri(path: str) -> bool:
    """Whether the path names a file system by a scheme."""
    return "://" in path


def absolute(path: str) -> str:
    """A local path made absolute; a URI as it is.

    Raises UserError for a URI with a query or a password, without repeating either: what is in a
    path gets into keys, logs and reports.
    """
    if not is_uri(path):
        return os.path.abspath(os.path.expanduser(path))
    parts = urlsplit(path)
    place = f"{parts.scheme}://…@{parts.netloc.rpartition('@')[2]}{parts.path}"
    if parts.password is not None:
        raise UserError(
            f"{place}: a key in a URI is not taken; set it in the environment (for S3"
            " AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY) or in the machine's role"
        )
    if parts.query:
        raise UserError(
            f"{place.replace('…@', '')}: a query in a URI is not taken; set AWS_ENDPOINT_URL or"
            " AWS_REGION instead"
        )
    return path.rstrip("/")


def open_filesystem(path: str) -> tuple[pafs.FileSystem, str]:
    """The filesystem that holds `path` (an absolute local path or a URI) and the path inside it.

    Raises UserError for a URI scheme that pyarrow does not know.
    """
    try:
        return pafs.FileSystem.from_uri(path)
    except pa.ArrowInvalid as error:
        raise UserError(f"{path} is no path that can be opened: {error}") from None


def _is_parquet(data: bytes) -> bool:
    try:
        pq.read_table(pa.BufferReader(data), **VERIFIED)
    except (OSError, pa.ArrowInvalid):
        return False
    return True


def join(*parts: str) -> str:
    """Path pieces put together with single slashes."""
    return "/".join(part.rstrip("/") for part in parts)


@dataclass(frozen=True)
class Folder:
    """A folder, local or in an object store, that reads and writes files whole.

    Small enough to travel to Ray workers: the filesystem is opened where it is used.
    """

    path: str

    def sub(self, name: str) -> Folder:
        return Folder(join(self.path, name))

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write a file that appears complete or not at all."""
        fs, path = open_filesystem(join(self.path, name))
        if isinstance(fs, pafs.LocalFileSystem):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            part = f"{path}.{uuid.uuid4().hex}.part"
            with open(part, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        else:
            # An object store shows an object once its upload is closed.
            with fs.open_output_stream(path, compression=None) as stream:
                stream.write(data)

    def write_json(self, name: str, value: Any) -> None:
        text = json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True)
        self.write_bytes(name, text.encode() + b"\n")

    def write_table(self, name: str, table: pa.Table) -> None:
        """Write a Parquet file that appears complete or not at all; the table must fit memory."""
        buffer = io.BytesIO()
        pq.write_table(table, buffer, **PARQUET)
        self.write_bytes(name, buffer.getvalue())

    def read_bytes(self, name: str) -> bytes | None:
        """The file's content, or None where there is no such file."""
        fs, path = open_filesystem(join(self.path, name))
        try:
            with fs.open_input_stream(path, compression=None) as stream:
                return bytes(stream.read())
        except FileNotFoundError:
            return None

    def read_table(self, name: str, columns: list[str] | None = None) -> pa.Table:
        """A Parquet file that was written here; its checksums are verified.

        A file that is damaged is deleted, so that the artifact that it belongs to counts as absent
        and is made again. Raises DamagedFile.
        """
        fs, path = open_filesystem(join(self.path, name))
        with self._noticing_damage(name):
            return pq.read_table(path, columns=columns, filesystem=fs, **VERIFIED)

    def read_row_groups(self, name: str, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """The same, a row group at a time."""
        fs, path = open_filesystem(join(self.path, name))
        with self._noticing_damage(name), fs.open_input_file(path) as stream:
            file = pq.ParquetFile(stream, **VERIFIED)
            for number in range(file.num_row_groups):
                yield file.read_row_group(number, columns)

    @contextmanager
    def open_table(self, name: str, schema: pa.Schema) -> Iterator[Callable[[pa.Table], None]]:
        """Write a Parquet file row group by row group. Not atomic: finish with a manifest."""
        with self.open_output(name) as stream, pq.ParquetWriter(stream, schema, **PARQUET) as file:
            yield lambda table: file.write_table(table, max(1, table.num_rows))

    @contextmanager
    def _noticing_damage(self, name: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except (OSError, pa.ArrowInvalid) as error:
            # A disk or a network may fail to give what is whole: what it does give decides.
            data = self.read_bytes(name)
            if data is None or _is_parquet(data):
                raise
            self.delete(name)
            raise DamagedFile(
                f"{join(self.path, name)} was damaged and is deleted; the same command makes it"
                " anew"
            ) from error

    @contextmanager
    def open_output(self, name: str) -> Iterator[Any]:
        """A binary stream for a file too large for memory. Not atomic: finish with a manifest."""
        fs, path = open_filesystem(join(self.path, name))
        fs.create_dir(os.path.dirname(path), recursive=True)
        with fs.open_output_stream(path, compression=None) as stream:
            yield stream

    def upload(self, local: str) -> None:
        """Copy a local folder's files here. Not atomic: finish with a manifest."""
        fs, path = open_filesystem(self.path)
        fs.create_dir(path, recursive=True)
        pafs.copy_files(local, path, destination_filesystem=fs)

    def download(self, local: str) -> None:
        """Copy this folder's files to a local one."""
        fs, path = open_filesystem(self.path)
        os.makedirs(local, exist_ok=True)
        pafs.copy_files(path, local, source_filesystem=fs)

    def sizes(self) -> dict[str, int]:
        """Size in bytes of every file below the folder, by its path relative to it."""
        fs, path = open_filesystem(self.path)
        infos = fs.get_file_info(pafs.FileSelector(path, allow_not_found=True, recursive=True))
        prefix = len(path.rstrip("/")) + 1
        return {info.path[prefix:]: info.size for info in infos if info.is_file}

    def delete(self, name: str = "") -> None:
        """Delete a file, or the whole folder; nothing happens where there is none."""
        fs, path = open_filesystem(join(self.path, name) if name else self.path)
        kind = fs.get_file_info(path).type
        if kind == pafs.FileType.Directory:
            fs.delete_dir(path)
        elif kind == pafs.FileType.File:
            fs.delete_file(path)


@dataclass(frozen=True)
class Finished:
    """A finished artifact: its folder, and what its maker noted in the manifest."""

    folder: Folder
    info: Mapping[str, Any]


@dataclass(frozen=True)
class Artifact:
    """The place of one artifact, `root/kind/key`, finished or absent."""

    home: Folder
    kind: str
    key: str

    def finished(self) -> Finished | None:
        """The artifact where it is complete; None where it is absent or damaged.

        Complete means that every file that the manifest lists is there in its full size.
        """
        raw = self.home.read_bytes(MANIFEST)
        if raw is None:
            return None
        try:
            manifest = json.loads(raw)
            folder = self.home.sub(manifest["attempt"])
            files, info = manifest["files"].items(), manifest["info"]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None
        present = folder.sizes()
        if any(present.get(name) != size for name, size in files):
            return None
        return Finished(folder, info)

    @contextmanager
    def turn(self, say: Callable[[str], None]) -> Iterator[Finished | None]:
        """The finished artifact, or None for the one run whose turn it is to make it.

        Another run that wants the same waits until the first has finished or died. In an object
        store, where nothing can be locked, both make it, and either result is right.
        """
        found = self.finished()
        if found or is_uri(self.home.path):
            yield found
            return
        os.makedirs(self.home.path, exist_ok=True)
        lock = FileLock(join(self.home.path, ".lock"))  # a process that dies lets it go
        try:
            lock.acquire(timeout=0)
        except Timeout:
            say(f"another run makes {self.kind}/{self.key}; waiting for it")
            lock.acquire()
        try:
            yield self.finished()
        finally:
            lock.release()

    @contextmanager
    def attempt(self) -> Iterator[Attempt]:
        """Make the artifact: write into the attempt's folder, then call its `finish`.

        A body that raises leaves no trace; one that is killed leaves a folder that nothing reads.
        """
        attempt = Attempt(self, self.home.sub(f"attempt-{uuid.uuid4().hex[:12]}"))
        with ExitStack() as undo:
            undo.callback(attempt.folder.delete)
            yield attempt
            undo.pop_all()

    def require(self, what: str, hint: str) -> Finished:
        """The finished artifact, or a UserError that says how to make it."""
        finished = self.finished()
        if finished is None:
            raise UserError(
                f"{what} is not in storage for this configuration ({self.kind}/{self.key}); {hint}"
            )
        return finished


@dataclass(frozen=True)
class Attempt:
    """One try at making an artifact; `folder` is its own."""

    artifact: Artifact
    folder: Folder

    def finish(self, inputs: Mapping[str, Any], info: Mapping[str, Any]) -> Finished:
        """Mark the artifact finished. inputs: what its key was made of, noted for provenance."""
        home = self.artifact.home
        manifest = {
            "kind": self.artifact.kind,
            "key": self.artifact.key,
            "inputs": inputs,
            "attempt": self.folder.path.rsplit("/", 1)[-1],
            "files": self.folder.sizes(),
            "info": info,
        }
        home.write_json(MANIFEST, manifest)
        return Finished(self.folder, info)


@dataclass(frozen=True)
class Storage:
    """The root under which all artifacts live; an absolute local path or a URI."""

    root: str

    def folder(self, *names: str) -> Folder:
        return Folder(join(self.root, *names))

    def artifact(self, kind: str, key: str) -> Artifact:
        return Artifact(self.folder(kind, key), kind, key)


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
