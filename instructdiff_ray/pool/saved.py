"""Folders that `datasets.save_to_disk` wrote: which of their files hold the data."""

from __future__ import annotations

import json
import posixpath
from collections import defaultdict
from collections.abc import Callable, Sequence

from instructdiff_ray.errors import UserError, require
from instructdiff_ray.pool.splits import choose_split

SPLITS, STATE = "dataset_dict.json", "state.json"


def saved_files(
    names: Sequence[str], split: str | None, folder: str, read: Callable[[str], bytes]
) -> list[str]:
    """Those of a folder's files that hold data; names are relative to it.

    Of a saved DatasetDict, those of one split. Where a saved dataset lies, the files that its state
    names: caches of `map` may lie beside them. All others are left as they are. read: gives a
    file's bytes. Raises UserError for a split that is not there, or a dataset that is not whole.
    """
    if SPLITS in names:
        splits: dict[str, list[str]] = defaultdict(list)
        for name in names:
            top, below, _ = name.partition("/")
            if below:
                splits[top].append(name)
        names = choose_split(splits, split, folder)
    else:
        check_no_split(split, folder)
    beside = _beside_data(names, folder, read)
    return [name for name in names if name not in beside]


def check_no_split(split: str | None, path: str) -> None:
    """Raises UserError where a split is named of what has none."""
    require(
        split is None,
        f"data.split={split} is of datasets of the Hub and of a DatasetDict that `save_to_disk`"
        f" wrote; {path} is neither",
    )


def _beside_data(names: Sequence[str], folder: str, read: Callable[[str], bytes]) -> set[str]:
    """The files in folders of saved datasets that hold no data of theirs."""
    by_folder: dict[str, set[str]] = defaultdict(set)
    for name in names:
        by_folder[posixpath.dirname(name)].add(name)
    beside: set[str] = set()
    for place, files in by_folder.items():
        state = posixpath.join(place, STATE)
        if state not in files or not any(name.endswith(".arrow") for name in files):
            continue
        try:
            listed = json.loads(read(state))["_data_files"]
            data = {posixpath.join(place, file["filename"]) for file in listed}
        except (ValueError, LookupError, TypeError):  # it is somebody else's
            continue
        if missing := sorted(data - files):
            raise UserError(f"{folder} is not whole: {missing[0]} is missing; save it again")
        beside |= files - data
    return beside
