"""Datasets of the Hub as `data.path`: at which commit they are read, and which of their files."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from glob import has_magic
from typing import Any

from instructdiff_ray.config.data import DataConfig
from instructdiff_ray.errors import UserError, require
from instructdiff_ray.pool.names import format_of, is_data_file
from instructdiff_ray.pool.readers import FORMAT_OF
from instructdiff_ray.pool.source import SourceFile, extension
from instructdiff_ray.pool.splits import Subsets, choose_files, find_subsets, matching
from instructdiff_ray.storage.hub import Contents, converted, pin, read_contents
from instructdiff_ray.storage.hub_client import SCHEME, HubPath

NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(@[\w./-]+)?", re.ASCII)
# What lies beside data and is none, as `datasets` has it.
METADATA = (
    "config.json",
    "dataset_dict.json",
    "dataset_info.json",
    "dataset_infos.json",
    "state.json",
)


def is_hub(path: str) -> bool:
    """Whether the path is one of the Hub's."""
    return path.startswith(SCHEME)


def pin_paths(data: DataConfig, say: Callable[[str], None]) -> DataConfig:
    """The same data with each dataset of the Hub at the commit that is its revision's now, so that
    all that a command reads is of one commit. Files and folders stay as they are.

    say: is told of each. Raises UserError in one line for what can't be reached or is not there.
    """

    def pinned(paths: Any) -> Any:
        if isinstance(paths, dict):
            return {domain: pinned(of) for domain, of in paths.items()}
        if isinstance(paths, (list, tuple)):
            return [pinned(path) for path in paths]
        return _pinned(str(paths), say) if paths else paths

    return replace(data, path=pinned(data.path))


def hub_files(path: str, data: DataConfig) -> list[SourceFile]:
    """The files of a dataset that a pinned path names, sorted: those of a subset's split, or those
    of a file, folder or glob. Their size, and the commit in their path, are what they are known by.
    """
    place = HubPath.parse(path)
    contents = read_contents(place)
    if place.inner:
        require(
            data.split is None and data.subset is None,
            f"data.split and data.subset are of whole datasets, and data.path={path} names files;"
            " leave out one of them",
        )
        names = _named(place, contents.sizes, data.format)
    else:
        require(
            data.format is None,
            f"data.format={data.format} is of named files, and data.path={place.repo} is a whole"
            f" dataset: leave it out, or name files, as in {SCHEME}datasets/{place.repo}/*.txt",
        )
        name = f"the dataset {place.repo}"
        names = sorted(choose_files(_subsets(contents), data.subset, data.split, name))
    require(
        bool(names),
        f"data.path={path} holds no {', '.join(FORMAT_OF)} file; name the files, or set"
        " data.format",
    )
    return [
        SourceFile(str(file), data.format or format_of(str(file)), contents.sizes[file.inner], 0)
        for file in map(place.file, names)
    ]


def _pinned(path: str, say: Callable[[str], None]) -> str:
    if is_hub(path):
        place = pin(asked := HubPath.parse(path))
    elif not _is_name(path):
        return path
    else:
        name, _, revision = path.partition("@")
        asked = HubPath(name, revision or None)
        try:
            place = pin(asked)
        except UserError as error:
            raise UserError(
                f"data.path={path} is no file or folder here ({os.path.abspath(path)}), and so,"
                f" as it reads org/name, is taken for a dataset of the Hub: {error}"
            ) from None
    if not place.inner:
        place = _readable(asked, place)
    if str(place) != path:
        say(f"data.path={path} is read as {place}")
    return str(place)


def _is_name(path: str) -> bool:
    """Whether a path is the name of a dataset, as one writes it for `datasets`: org/name, where
    nothing here has that name and it does not end as a data file does."""
    known = extension(path) in FORMAT_OF
    return bool(NAME.fullmatch(path)) and not known and not os.path.exists(path)


def _readable(asked: HubPath, place: HubPath) -> HubPath:
    """The dataset, or what the Hub has made of one that is in no format of ours or needs a script
    of its own to be read."""
    contents = read_contents(place)
    script = f"{place.repo.split('/')[1]}.py" in contents.sizes
    if not script and not _subsets(contents).empty:
        return place
    why = "is read by a script of its own" if script else f"holds no {', '.join(FORMAT_OF)} file"
    if asked.revision not in (None, "main"):
        raise UserError(
            f"the dataset {asked.repo} {why} at {asked.revision}, and the Hub converts only the"
            " main branch to Parquet; leave out the revision, or name the files"
        )
    parquet = converted(place)
    if parquet is None:
        raise UserError(
            f"the dataset {asked.repo} {why}, and the Hub has not converted it to Parquet; save it"
            " as Parquet or JSON Lines yourself and name these files"
        )
    return parquet


def _subsets(contents: Contents) -> Subsets:
    names = [
        name
        for name in sorted(contents.sizes)
        if is_data_file(name) and name.rsplit("/", 1)[-1] not in METADATA
    ]
    return find_subsets(contents.card, names)


def _named(place: HubPath, sizes: Iterable[str], format: str | None) -> list[str]:
    """The file that the path names, or the data files of its folder or glob."""
    names = sorted(sizes)
    if place.inner in names:
        return [place.inner]
    if has_magic(place.inner):
        try:
            return [name for name in matching(place.inner, names) if is_data_file(name, format)]
        except (ValueError, re.error) as error:
            raise UserError(f"data.path={place} is no glob: {error}") from None
    folder = f"{place.inner}/"
    below = [name for name in names if name.startswith(folder)]
    if not below:
        raise UserError(f"data.path={place} does not exist")
    return [name for name in below if is_data_file(name.removeprefix(folder), format)]
