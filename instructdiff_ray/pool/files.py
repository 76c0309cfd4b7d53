"""The source files that a path names: a file, a folder or a glob, on a disk or in a store, or a
dataset of the Hub."""

from __future__ import annotations

import glob
import os
from dataclasses import replace
from urllib.parse import quote

from pyarrow import fs as pafs

from instructdiff_ray.config.data import DataConfig
from instructdiff_ray.errors import UserError, require
from instructdiff_ray.pool.hub_data import hub_files, is_hub
from instructdiff_ray.pool.names import format_of, is_data_file
from instructdiff_ray.pool.readers import FORMAT_OF, FORMATS
from instructdiff_ray.pool.saved import check_no_split, saved_files
from instructdiff_ray.pool.source import SourceFile
from instructdiff_ray.storage.filesystem import absolute, is_uri, open_filesystem


def find_files(paths: list[str], format: str | None = None) -> list[SourceFile]:
    """The files that `paths` (files, folders, globs) name, each once, sorted by path within each.

    Raises UserError for a path that names nothing, or a named file of unknown format.
    """
    check_format(format)
    return _find_files(paths, DataConfig(format=format))


def _find_files(paths: list[str], data: DataConfig) -> list[SourceFile]:
    require(bool(paths), "data.path is not set; name a file, a folder or a glob")
    files: dict[str, SourceFile] = {}
    for path in paths:
        for file in _expand(path, data):
            files.setdefault(file.path, file)
    return list(files.values())


def check_format(format: str | None) -> None:
    """Raises UserError for a format that is not known; None goes by each file's name."""
    require(
        format is None or format in FORMATS,
        f"data.format={format} is not known; use one of {', '.join(FORMATS)}",
    )


def source_files(data: DataConfig) -> list[SourceFile]:
    """The files that `data.path` names, each with its domain where it names one; datasets of the
    Hub are pinned.

    Raises UserError for a path that names nothing or can't be read, or a file that is of two
    domains.
    """
    files: dict[str, SourceFile] = {}
    for domain, paths in data.paths_by_domain.items():
        try:
            of_domain = _find_files(paths, data)
        except OSError as error:  # a bucket that is missing or closed, a disk that fails
            raise UserError(f"data.path can't be read: {' '.join(str(error).split())}") from None
        for file in of_domain:
            if files.setdefault(file.path, replace(file, domain=domain)).domain != domain:
                raise UserError(
                    f"data.path has {file.path} in the domains {files[file.path].domain} and"
                    f" {domain}; a file is of one"
                )
    return list(files.values())


def _expand(path: str, data: DataConfig) -> list[SourceFile]:
    if is_hub(path):
        return hub_files(path, data)
    require(
        data.subset is None,
        f"data.subset={data.subset} is of datasets of the Hub; data.path={path} is none",
    )
    if not is_uri(path) and glob.has_magic(path) and not os.path.exists(path):
        matches = sorted(glob.glob(os.path.expanduser(path), recursive=True))
        if not matches:
            raise UserError(f"data.path={path} matches no file")
        return [file for match in matches for file in _expand(match, data)]
    path = absolute(path)
    fs, inner = open_filesystem(path)
    info = fs.get_file_info(inner)
    if info.type == pafs.FileType.NotFound:
        raise UserError(f"data.path={path} does not exist")
    if info.type == pafs.FileType.File:
        check_no_split(data.split, path)
        return [_source_file(path, info, data.format or format_of(path))]
    files = _list_folder(fs, path, inner, data)
    if not files:
        raise UserError(
            f"data.path={path} is a folder without a {', '.join(FORMAT_OF)} file; name the files,"
            " or set data.format"
        )
    return files


def _list_folder(fs: pafs.FileSystem, path: str, inner: str, data: DataConfig) -> list[SourceFile]:
    """The data files below a folder; others (a README, `_SUCCESS`, hidden ones) are passed over."""

    def read(name: str) -> bytes:
        with fs.open_input_stream(f"{inner.rstrip('/')}/{name}", compression=None) as stream:
            return bytes(stream.read())

    infos = fs.get_file_info(pafs.FileSelector(inner, recursive=True))
    start = len(inner.rstrip("/")) + 1
    by_name = {info.path[start:]: info for info in infos if info.is_file}
    files = []
    for name in saved_files(sorted(by_name), data.split, path, read):
        if is_data_file(name, data.format):
            # In a URI, a space or a `#` of a name is escaped.
            named = f"{path}/{quote(name) if is_uri(path) else name}"
            format = data.format or format_of(name)
            files.append(_source_file(named, by_name[name], format))
    return files


def _source_file(path: str, info: pafs.FileInfo, format: str) -> SourceFile:
    return SourceFile(path, format, info.size, info.mtime_ns or 0)
