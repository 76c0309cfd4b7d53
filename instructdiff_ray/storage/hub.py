"""Datasets of the Hugging Face Hub: pinned to a commit, and what the commit holds."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any, NamedTuple

import yaml
from huggingface_hub import DatasetCard, HfApi, constants
from huggingface_hub.hf_api import RepoFile

from instructdiff_ray.errors import UserError
from instructdiff_ray.storage.hub_client import (
    HubPath,
    offline_line,
    open_dataset,
    patiently,
    snapshot,
)

CARD = "README.md"
CONVERTED = "refs/convert/parquet"  # where the Hub keeps what it has converted to Parquet
SHARD = re.compile(r"(.*-)\d{5}-of-(\d{5})")


class Contents(NamedTuple):
    """What a commit holds. sizes: of its files in bytes, by name; card: the YAML of its card."""

    sizes: Mapping[str, int]
    card: Mapping[str, Any]


def pin(place: HubPath) -> HubPath:
    """The place at the commit for which its revision stands now; offline, in this machine's cache.

    Raises UserError where there is no such dataset or revision, or it may not be read.
    """
    if constants.HF_HUB_OFFLINE:
        return replace(place, revision=snapshot(place).name)
    api = HfApi()
    # Nothing is lost yet, so whoever has no network hears of it at once.
    info = patiently(
        partial(
            api.dataset_info,
            place.repo,
            revision=place.revision,
            timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
        ),
        place,
        connected=False,
    )
    if info.gated:  # what it holds is open to all, and what is in it to some
        patiently(partial(api.auth_check, place.repo, repo_type="dataset"), place)
    return replace(place, revision=info.sha)


def converted(place: HubPath) -> HubPath | None:
    """What the Hub has converted of the dataset's main branch to Parquet, pinned; None where it has
    not. UserError where that can't be known."""
    branch = HubPath(place.repo, CONVERTED)
    if constants.HF_HUB_OFFLINE:
        return pin(branch)
    refs = patiently(partial(HfApi().list_repo_refs, place.repo, repo_type="dataset"), place)
    commits = [ref.target_commit for ref in refs.converts if ref.ref == CONVERTED]
    return replace(branch, revision=commits[0]) if commits else None


def read_contents(place: HubPath) -> Contents:
    """What the commit of a pinned path holds. Raises UserError."""
    assert place.revision is not None
    return _contents(place.repo, place.revision, bool(constants.HF_HUB_OFFLINE))


@lru_cache(maxsize=16)
def _contents(repo: str, commit: str, offline: bool) -> Contents:
    """A commit never changes, so a command asks once."""
    place = HubPath(repo, commit)
    sizes = _cached_sizes(place) if offline else patiently(partial(_listed_sizes, place), place)
    return Contents(sizes, _read_card(place.file(CARD)) if CARD in sizes else {})


def _listed_sizes(place: HubPath) -> dict[str, int]:
    tree = HfApi().list_repo_tree(
        place.repo, recursive=True, revision=place.revision, repo_type="dataset"
    )
    return {entry.path: entry.size for entry in tree if isinstance(entry, RepoFile)}


def _cached_sizes(place: HubPath) -> dict[str, int]:
    folder = snapshot(place)
    files = [path for path in folder.rglob("*") if path.is_file()]
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
    # Who fetched single files has a snapshot too: the numbers in their names tell what is missing.
    shards = Counter(shard.groups() for shard in map(SHARD.match, sizes) if shard)
    if any(count < int(of) for (_, of), count in shards.items()):
        raise UserError(offline_line(place))
    return sizes


def _read_card(place: HubPath) -> dict[str, Any]:
    fs, path = open_dataset(str(place))
    with fs.open_input_stream(path, compression=None) as stream:
        text = bytes(stream.read()).decode(errors="replace")
    if not text.startswith("---"):
        return {}
    try:
        return dict(DatasetCard(text, ignore_metadata_errors=True).data.to_dict())
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise UserError(
            f"the card {place} can't be read ({' '.join(str(error).split())}); name the files of"
            f" the dataset, as in {place.file('data/*.parquet')}"
        ) from None
