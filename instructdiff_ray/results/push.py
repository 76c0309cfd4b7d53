"""A finished run's folder as a data set on the Hugging Face Hub.

What goes there is the card and the files that it names: the selection, the ranking and the formats.
The configuration, the summary, the report and the rejects stay, for they tell paths of a machine or
show rows that nobody has selected; the rejects go along when they are asked for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from httpx2 import HTTPError
from huggingface_hub import CommitOperationAdd, DatasetCard, HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)
from huggingface_hub.utils import validate_repo_id

from instructdiff_ray.errors import UserError, require
from instructdiff_ray.results.card import CARD
from instructdiff_ray.results.formats import FORMATS_FOLDER
from instructdiff_ray.results.status import SUMMARY
from instructdiff_ray.storage.filesystem import Folder

REJECTS = "rejects"
REJECTS_FILE = "rejects.jsonl"
FILES = (CARD, "selected.jsonl", "ranking.parquet")
# What a repository has that nobody has written to.
EMPTY = {".gitattributes"}
REFUSED = {
    401: "the Hub does not know you; log in with `hf auth login`, or set HF_TOKEN",
    403: "your token may not write there; take one with the right to write, and a name of yours",
    404: "the Hub knows no such place; check the name, and that your token may write there",
    409: "there is a repository of this name already",
}


@dataclass(frozen=True)
class Upload:
    """What would be uploaded: a file's name → its size in bytes."""

    folder: Folder
    repository: str
    public: bool
    rejects: bool
    sizes: Mapping[str, int]


def plan_upload(folder: Folder, repository: str, public: bool, rejects: bool) -> Upload:
    """What of a run's folder would go to the repository; asks the Hub nothing.

    rejects: with the rejected rows, which are source text. UserError where the folder holds no
    finished run, or the name is none.
    """
    require(
        folder.read_bytes(SUMMARY) is not None,
        f"{folder.path} holds no finished run; name a run's folder, with {SUMMARY} in it",
    )
    sizes = folder.sizes()
    require(
        CARD in sizes,
        f"{folder.path} has no {CARD}, it is of an earlier version; give the run's command again,"
        " which runs no model",
    )
    check_name(repository)
    chosen = {
        name: size
        for name, size in sorted(sizes.items())
        if name in FILES
        or name.startswith(f"{FORMATS_FOLDER}/")
        or rejects
        and name == REJECTS_FILE
        and size
    }
    chosen[CARD] = len(_card(folder, rejects))
    return Upload(folder, repository, public, rejects, chosen)


def check_name(repository: str) -> None:
    """Raises UserError where this can't be the name of a data set."""
    try:
        validate_repo_id(repository)
    except HFValidationError:
        repository = ""
    require(repository.count("/") == 1, "name the repository as ORGANISATION/NAME or YOU/NAME")


def _card(folder: Folder, rejects: bool) -> bytes:
    """The run's card; without the rejects, where these stay."""
    content = folder.read_bytes(CARD)
    assert content is not None
    if rejects:
        return content
    card = DatasetCard(content.decode())
    configs = card.data["configs"]
    kept = [config for config in configs if config["config_name"] != REJECTS]
    if len(kept) == len(configs):
        return content
    card.data["configs"] = kept
    lines = card.text.splitlines(keepends=True)
    card.text = "".join(line for line in lines if f', "{REJECTS}", split=' not in line)
    return card.content.encode()


def push(upload: Upload, local: str) -> str:
    """Make the repository, and upload all in one commit; gives its address.

    local: a folder here that holds the files. UserError for whatever the Hub refuses, and where
    something is in the repository already: what others read is never replaced.
    """
    summary = json.loads(upload.folder.read_bytes(SUMMARY) or b"{}")
    files = {
        name: _card(upload.folder, upload.rejects) if name == CARD else str(Path(local, name))
        for name in upload.sizes
    }
    line = f"Selection of {summary['counts']['selected']:,} samples"
    return publish(upload.repository, upload.public, files, line)


def publish(
    repository: str, public: bool, files: Mapping[str, bytes | str], commit_message: str
) -> str:
    """Make a data set of these files, in one commit; gives its address. files: by name, content or
    path.

    Raises UserError for whatever the Hub refuses, and where something is in the repository already.
    """
    api = HfApi()
    with _in_one_line(repository):
        address = _make_repository(api, repository, public)
        operations = [CommitOperationAdd(name, content) for name, content in files.items()]
        api.create_commit(
            repository, operations, commit_message=commit_message, repo_type="dataset"
        )
    return address


def _make_repository(api: HfApi, name: str, public: bool) -> str:
    """The address of a new repository, or of one that a push which failed has left empty."""
    try:
        return str(api.create_repo(name, private=not public, repo_type="dataset"))
    except HfHubHTTPError as error:
        if error.response.status_code != 409:
            raise
    info = api.dataset_info(name)
    held = {sibling.rfilename for sibling in info.siblings or []} - EMPTY
    require(not held, f"{name} exists and holds data, which is not replaced; take another name")
    require(
        info.private is not public,
        f"{name} exists and is {'private' if info.private else 'public'}, which is not what you"
        " ask for; take another name, or change it on the Hub",
    )
    return f"{api.endpoint}/datasets/{name}"


@contextmanager
def _in_one_line(repository: str) -> Iterator[None]:
    try:
        yield
    except (LocalTokenNotFoundError, OfflineModeIsEnabled) as error:
        raise UserError(_first_line(error)) from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        reason = REFUSED.get(status) or error.server_message or f"it answers {status}"
        raise UserError(f"{repository} can't be written: {reason}") from None
    # Messages of the library may hold signed addresses; that of an upload is a RuntimeError.
    except (HTTPError, RuntimeError) as error:
        raise UserError(
            f"the Hub can't be reached, or takes no file now ({type(error).__name__}); nothing is"
            " published before all is uploaded, so give the same command again"
        ) from None


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]
