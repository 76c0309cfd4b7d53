"""Subsets and splits of a dataset: which of its files they are.

The rules are those of `datasets.load_dataset`: what the dataset's card says (`configs`), else how
files and folders are usually called.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from glob import has_magic
from typing import Any

from fsspec.utils import glob_translate

from instructdiff_ray.errors import UserError, require
from instructdiff_ray.pool.readers import FORMAT_OF
from instructdiff_ray.pool.source import extension

# What is read where none is named.
DEFAULT_SPLIT, DEFAULT_SUBSET = "train", "default"
WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
BORDER = "[-._ 0-9]"
SHARDED = re.compile(r"data/(\w+(?:\.\w+)*)-\d{5}-of-\d{5}[^/]*\.[^/]*")
IN_FOLDERS = ("**/{0}/**", "**/{0}{1}*/**", "**/*{1}{0}/**", "**/*{1}{0}{1}*/**")
IN_NAMES = ("**/{0}{1}*", "**/*{1}{0}{1}*")
# How the Hub lays out what it has converted, the first gigabytes of a split where that is long.
CONVERTED = re.compile(r"([^/]+)/([^/]+)/\d{4,}\.parquet")
PARTIAL = "partial-"
Splits = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Subsets:
    """The subsets of a dataset, by name, and the names of the files of their splits.

    default: the one that is read where none is named; None: there are several and none is marked.
    """

    splits: Mapping[str, Splits]
    default: str | None

    @property
    def empty(self) -> bool:
        """Whether there is no file in any."""
        return not any(files for splits in self.splits.values() for files in splits.values())


def find_subsets(card: Mapping[str, Any], names: Sequence[str]) -> Subsets:
    """The subsets of a dataset with this card and these data files. Raises UserError for a card
    that can't be followed."""
    configs = card.get("configs") or []
    if isinstance(configs, dict):
        configs = [configs]
    configs = [config for config in configs if isinstance(config, dict)]
    laid_out = [match for match in map(CONVERTED.fullmatch, names) if match]
    if not configs and laid_out and len(laid_out) == len(names):
        return _converted(laid_out)
    if not configs:
        return Subsets({DEFAULT_SUBSET: _usual_splits(names)}, DEFAULT_SUBSET)
    splits = {
        str(config.get("config_name", DEFAULT_SUBSET)): _configured_splits(config, names)
        for config in configs
    }
    marked = [str(c.get("config_name", DEFAULT_SUBSET)) for c in configs if c.get("default")]
    if DEFAULT_SUBSET in splits or len(splits) == 1:
        marked.append(DEFAULT_SUBSET if DEFAULT_SUBSET in splits else next(iter(splits)))
    return Subsets(splits, marked[0] if marked else None)


def choose_files(
    subsets: Subsets, subset: str | None, split: str | None, name: str
) -> Sequence[str]:
    """The files of a subset's split. Raises UserError, with what there is, where it is not there or
    none is named and it is not plain which is meant. name: of the dataset, for that."""
    there = ", ".join(subsets.splits)
    chosen = subset or subsets.default
    if chosen is None:
        first = next(iter(subsets.splits))
        raise UserError(
            f"{name} has several subsets: {there}; name the one you want, as in data.subset={first}"
        )
    if chosen not in subsets.splits:
        raise UserError(f"{name} has no subset {chosen}; it has {there}")
    return choose_split(subsets.splits[chosen], split, name)


def choose_split(splits: Splits, split: str | None, name: str) -> Sequence[str]:
    """The same among the splits of one subset."""
    require(bool(splits), f"{name} holds no file of a format that is read")
    wanted = split or DEFAULT_SPLIT
    if split is None and wanted not in splits and len(splits) == 1:
        wanted = next(iter(splits))
    if f"{PARTIAL}{wanted}" in splits or (split is None and wanted.startswith(PARTIAL)):
        part = wanted if wanted.startswith(PARTIAL) else f"{PARTIAL}{wanted}"
        raise UserError(
            f"{name} is in no format that is read, and the Hub has converted only the first"
            f" gigabytes of it to Parquet; data.split={part} takes these"
        )
    if wanted not in splits:
        none = f"no split {split}" if split else f"several splits, none of them {DEFAULT_SPLIT}"
        raise UserError(
            f"{name} has {none}; it has {', '.join(splits)}: name one, as in"
            f" data.split={next(iter(splits))}"
        )
    return splits[wanted]


def _converted(files: Iterable[re.Match[str]]) -> Subsets:
    splits: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for match in files:
        splits[match[1]][match[2]].append(match[0])
    marked = DEFAULT_SUBSET if DEFAULT_SUBSET in splits else None
    return Subsets(splits, next(iter(splits)) if len(splits) == 1 else marked)


def _configured_splits(config: Mapping[str, Any], names: Sequence[str]) -> Splits:
    folder = str(config.get("data_dir") or "").strip("./")
    prefix = f"{folder}/" if folder else ""
    files = config.get("data_files")
    if files is None:
        below = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
        usual = _usual_splits(below)
        return {split: [f"{prefix}{name}" for name in of] for split, of in usual.items()}
    patterns: dict[str, list[str]] = defaultdict(list)
    for entry in files if isinstance(files, list) else [files]:
        split, paths = DEFAULT_SPLIT, entry
        if isinstance(entry, dict):
            split, paths = str(entry.get("split", DEFAULT_SPLIT)), entry.get("path") or []
        patterns[split] += map(str, paths if isinstance(paths, list) else [paths])
    return {
        split: _of_one_format(_matching([prefix + p.removeprefix("./") for p in wanted], names))
        for split, wanted in patterns.items()
    }


def _usual_splits(names: Sequence[str]) -> Splits:
    """Splits by the names of files: `data/train-00000-of-00002.parquet`, else folders, else files
    that are called after them; else all is `train`."""
    if shards := [match for match in map(SHARDED.fullmatch, names) if match]:
        sharded: dict[str, list[str]] = defaultdict(list)
        for match in shards:
            sharded[match[1]].append(match[0])
        return {split: _of_one_format(files) for split, files in sharded.items()}
    for patterns in (IN_FOLDERS, IN_NAMES):
        splits = {}
        for split, words in WORDS.items():
            globs = [pattern.format(word, BORDER) for word in words for pattern in patterns]
            if files := _matching(globs, names):
                splits[split] = _of_one_format(files)
        if splits:
            return splits
    return {DEFAULT_SPLIT: _of_one_format(names)} if names else {}


def matching(pattern: str, names: Iterable[str]) -> list[str]:
    """The names that a glob matches (`*`, `?`, `[…]`, and `**` for folders), or the one that it is.
    ValueError for what is no glob."""
    if not has_magic(pattern):
        return [name for name in names if name == pattern]
    compiled = re.compile(glob_translate(pattern))
    return [name for name in names if compiled.match(name)]


def _matching(patterns: Iterable[str], names: Sequence[str]) -> list[str]:
    """The names that one of the patterns matches, each once, in their order."""
    matches: set[str] = set()
    for pattern in patterns:
        try:
            matches.update(matching(pattern, names))
        except (ValueError, re.error):
            raise UserError(
                f"the card names files as {pattern}, which is no glob that is known here; name the"
                " files in data.path"
            ) from None
    return [name for name in names if name in matches]


def _of_one_format(names: Sequence[str]) -> list[str]:
    """Those of the format that most have: a dataset may lie there twice, in two formats."""
    counts = Counter(map(_family, names))
    # Of formats with as many files, the first of this list.
    order = ("parquet", "jsonl", "csv", "arrow")
    best = max(counts, key=lambda f: (counts[f], -order.index(f)), default=None)
    return [name for name in names if _family(name) == best]


def _family(name: str) -> str:
    """The format, where JSON Lines are under either name."""
    format = FORMAT_OF[extension(name)]
    return "jsonl" if format == "json" else format
