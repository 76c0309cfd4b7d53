"""Folders and files, local or in an object store, and the paths that name them."""

from __future__ import annotations

import io
import json
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from instructdiff_ray.errors import DamagedFile, UserError

# How Parquet is written here: with a checksum in every page, for a disk may forget a bit.
PARQUET = {"compression": "zstd", "write_page_checksum": True}
VERIFIED = {"page_checksum_verification": True}
# Of what is sorted, a reader that wants a range takes the row groups that hold it.
ROWS_PER_GROUP = 1 << 16
PART = ".part"  # how the name of a file ends that is being written


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
    if path.startswith("hf://"):
        # Imported where it is needed: most processes read nothing of the Hub.
        from instructdiff_ray.storage.hub_client import open_dataset

        return open_dataset(path)
    try:
        if not path.startswith("s3://"):
            return pafs.FileSystem.from_uri(path)
        parts = urlsplit(path)
        regions = (os.environ.get(name) for name in ("AWS_REGION", "AWS_DEFAULT_REGION"))
        region = next(filter(None, regions), None)
        fs = _open_s3(parts.netloc, region, os.environ.get("AWS_ENDPOINT_URL"))
        return fs, f"{parts.netloc}{unquote(parts.path)}".rstrip("/")
    except pa.ArrowInvalid as error:
        raise UserError(f"{path} is no path that can be opened: {error}") from None


@lru_cache(maxsize=64)
def _open_s3(bucket: str, region: str | None, endpoint: str | None) -> pafs.S3FileSystem:
    """One for all files of a bucket, so that connections are used again."""
    options: dict[str, Any] = {"region": region}
    if endpoint:
        place = urlsplit(endpoint)
        options |= {"endpoint_override": place.netloc, "scheme": place.scheme}
    elif not region:
        options["region"] = pafs.resolve_s3_region(bucket)
    return pafs.S3FileSystem(
        # With waits that double each time: a minute and a half, for a store that is throttled.
        retry_strategy=pafs.AwsDefaultS3RetryStrategy(max_attempts=12),
        # A file that fits a buffer is one request, not three.
        allow_delayed_open=True,
        **options,
    )


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
            part = f"{path}.{uuid.uuid4().hex}{PART}"
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

    def write_table(self, name: str, table: pa.Table) -> int:
        """Write a Parquet file that appears complete or not at all; the table must fit memory.
        Gives its size in bytes."""
        buffer = io.BytesIO()
        pq.write_table(table, buffer, row_group_size=ROWS_PER_GROUP, **PARQUET)
        self.write_bytes(name, buffer.getvalue())
        return buffer.tell()

    def read_bytes(self, name: str) -> bytes | None:
        """The file's content, or None where there is no such file."""
        fs, path = open_filesystem(join(self.path, name))
        try:
            with fs.open_input_stream(path, compression=None) as stream:
                return bytes(stream.read())
        except FileNotFoundError:
            return None

    def read_table(
        self, name: str, columns: list[str] | None = None, rows: pc.Expression | None = None
    ) -> pa.Table:
        """A Parquet file that was written here, or some of its columns and rows; its checksums are
        verified.

        A file that is damaged is deleted, so that the artifact that it belongs to counts as absent
        and is made again. Raises DamagedFile.
        """
        fs, path = open_filesystem(join(self.path, name))
        with self._noticing_damage(name):
            return pq.read_table(path, columns=columns, filters=rows, filesystem=fs, **VERIFIED)

    def read_head(self, name: str, columns: list[str]) -> tuple[pa.Table, bool]:
        """The first row group, and whether there is no other."""
        groups = self.read_row_groups(name, columns)
        return next(groups), next(groups, None) is None

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
            if data is None:  # deleted while it was read
                raise FileNotFoundError(join(self.path, name)) from error
            if _is_parquet(data):
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
        """Size in bytes of every file below the folder, by its path relative to it; what is still
        being written is none."""
        fs, path = open_filesystem(self.path)
        infos = fs.get_file_info(pafs.FileSelector(path, allow_not_found=True, recursive=True))
        prefix = len(path.rstrip("/")) + 1
        return {
            info.path[prefix:]: info.size
            for info in infos
            if info.is_file and not info.path.endswith(PART)
        }

    def exists(self) -> bool:
        """Whether there is such a folder; in an object store, whether it holds a file."""
        fs, path = open_filesystem(self.path)
        return fs.get_file_info(path).type == pafs.FileType.Directory

    def delete(self, name: str = "") -> None:
        """Delete a file, or the whole folder; nothing happens where there is none."""
        fs, path = open_filesystem(join(self.path, name) if name else self.path)
        kind = fs.get_file_info(path).type
        with suppress(FileNotFoundError):  # another run deletes it
            if kind == pafs.FileType.Directory:
                fs.delete_dir(path)
            elif kind == pafs.FileType.File:
                fs.delete_file(path)
