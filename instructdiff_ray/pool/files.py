"""The source files that a path names: a file, a folder or a glob, on a disk or in a store."""

from __future__ import annotations

import glob
import os
from dataclasses import replace
from urllib.parse import quote

from pyarrow import fs as pafs

from instructdiff_ray.config.data import DataConfig
from instructdiff_ray.errors import UserError, require
from instructdiff_ray.pool.readers import COMPRESSED, FORMAT_OF, FORMATS, SourceFile, extension
from instructdiff_ray.storage.filesystem import absolute, is_uri, open_filesystem


def find_files(paths: list[str], format: str | None = None) -> list[SourceFile]:
    """The files that `paths` (files, folders, globs) name, each once, sorted by path within each.

    Raises UserError for a path that names nothing, or a named file of unknown format.
    """
    if not paths:
        raise UserError("data.path is not set; name a file, a folder or a glob")
    check_format(format)
    files: dict[str, SourceFile] = {}
    for path in paths:
        for file in _expand(path, format):
            files.setdefault(file.path, file)
    return list(files.values())


def check_format(format: str | None) -> None:
    """Raises UserError for a format that is not known; None goes by each file's name."""
    require(
        format is None or format in FORMATS,
        f"data.format={format} is not known; use one of {', '.join(FORMATS)}",
    )


def source_files(data: DataConfig) -> list[SourceFile]:
    """The files that `data.path` names, each with its domain where it names one.

    Raises UserError for a path that names nothing or can't be read, or a file that is of two
    domains.
    """
    files: dict[str, SourceFile] = {}
    for domain, paths in data.paths_by_domain.items():
        try:
            of_domain = find_files(paths, data.format)
        except OSError as error:  # a bucket that is missing or closed, a disk that fails
            raise UserError(f"data.path can't be read: {' '.join(str(error).split())}") from None
        for file in of_domain:
            if files.setdefault(file.path, replace(file, domain=domain)).domain != domain:
                raise UserError(
                    f"data.path has {file.path} in the domains {files[file.path].domain} and"
                    f" {domain}; a file is of one"
                )
    return list(files.values())


def _expand(path: str, format: str | None) -> list[SourceFile]:
    if not is_uri(path) and glob.has_magic(path) and not os.path.exists(path):
        matches = sorted(glob.glob(os.path.expanduser(path), recursive=True))
        if not matches:
            raise UserError(f"data.path={path} matches no file")
        return [file for match in matches for file in _expand(match, format)]
    path = absolute(path)
    fs, inner = open_filesystem(path)
    info = fs.get_file_info(inner)
    if info.type == pafs.FileType.NotFound:
        raise UserError(f"data.path={path} does not exist")
    if info.type == pafs.FileType.File:
        return [_source_file(path, info, format or _format_of(path))]
    files = _list_folder(fs, path, inner, format)
    if not files:
        raise UserError(
            f"data.path={path} is a folder without a {', '.join(FORMAT_OF)} file; name the files,"
            " or set data.format"
        )
    return files


def _list_folder(
    fs: pafs.FileSystem, path: str, inner: str, format: str | None
) -> list[SourceFile]:
    """The data files below a folder; others (a README, `_SUCCESS`, hidden ones) are passed over."""
    files = []
    infos = fs.get_file_info(pafs.FileSelector(inner, recursive=True))
    for info in sorted(infos, key=lambda info: info.path):
        relative = info.path[len(inner.rstrip("/")) + 1 :]
        hidden = any(piece.startswith((".", "_")) for piece in relative.split("/"))
        known = format or FORMAT_OF.get(extension(relative))
        if info.is_file and not hidden and known:
            # In a URI, a space or a `#` of a name is escaped.
            name = quote(relative) if is_uri(path) else relative
            files.append(_source_file(f"{path}/{name}", info, known))
    return files


def _source_file(path: str, info: pafs.FileInfo, format: str) -> SourceFile:
    return SourceFile(path, format, info.size, info.mtime_ns or 0)


def _format_of(path: str) -> str:
    ending = extension(path)
    if ending not in FORMAT_OF:
        raise UserError(
            f"data.path={path}: unknown format {ending or '(no extension)'}; known are"
            f" {', '.join(FORMAT_OF)} (each may be {', '.join(COMPRESSED)}), or set data.format"
        )
    return FORMAT_OF[ending]
