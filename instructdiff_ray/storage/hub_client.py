"""How the Hugging Face Hub is asked: paths of its datasets, patience, files read in ranges."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote, unquote, urlsplit

import pyarrow as pa
from fsspec.spec import AbstractBufferedFile
from httpx2 import ConnectError, ConnectTimeout, HTTPError, TransportError
from huggingface_hub import (
    HfFileSystem,
    constants,
    get_hf_file_metadata,
    hf_hub_url,
    snapshot_download,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HfUriError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_backoff, parse_hf_uri
from pyarrow import fs as pafs

from instructdiff_ray.errors import UserError

SCHEME = "hf://"
# As long as an S3 store is waited for. Within, the library's own repetitions count.
PATIENCE_S, LONGEST_WAIT_S = 90.0, 15.0
TOKEN = "HF_TOKEN, or `hf auth login`; on a cluster HF_TOKEN in the environment of all workers"
T = TypeVar("T")


@dataclass(frozen=True)
class HubPath:
    """`hf://datasets/org/name[@revision][/inner]`.

    revision: branch, tag or commit; None: the main branch. inner: a file, a folder or a glob; empty
        for the whole dataset.
    """

    repo: str
    revision: str | None = None
    inner: str = ""

    @classmethod
    def parse(cls, path: str) -> HubPath:
        """Raises UserError for what names no dataset."""
        try:
            uri = parse_hf_uri(path)
        except HfUriError:
            uri = None
        if uri is None or uri.type != "dataset":
            raise UserError(
                f"{path} names no dataset of the Hub; write hf://datasets/org/name, and behind it"
                " @revision, or a file, folder or glob, where you mean one"
            )
        return cls(uri.id, uri.revision, unquote(uri.path_in_repo))

    def __str__(self) -> str:
        revision = f"@{quote(self.revision, safe='')}" if self.revision else ""
        # A glob stays legible; names of files are escaped as in other URIs.
        inner = f"/{quote(self.inner, safe='/*[]')}" if self.inner else ""
        return f"{SCHEME}datasets/{self.repo}{revision}{inner}"

    def file(self, name: str) -> HubPath:
        """Another place in the same dataset."""
        return replace(self, inner=name)


def open_dataset(path: str) -> tuple[pafs.FileSystem, str]:
    """The filesystem that holds a file of a dataset, and the path inside it; offline, that of this
    machine's cache.

    It and its files raise UserError for what the Hub refuses, or does not give for long.
    """
    place = HubPath.parse(path)
    if constants.HF_HUB_OFFLINE:
        return pafs.LocalFileSystem(), str(snapshot(place) / place.inner)
    return _hub_filesystem(constants.ENDPOINT), str(place).removeprefix(SCHEME)


@lru_cache(maxsize=4)
def _hub_filesystem(endpoint: str) -> pafs.FileSystem:
    return pafs.PyFileSystem(_Handler(HfFileSystem(endpoint=endpoint)))


class _Handler(pafs.FSSpecHandler):
    """Opens a file without the listing of its folder: the Hub bears many requests for files and
    few to its API, and each worker of a cluster would ask for one."""

    def open_input_file(self, path: str) -> pa.PythonFile:
        place = HubPath.parse(SCHEME + path)
        url = hf_hub_url(place.repo, place.inner, repo_type="dataset", revision=place.revision)
        metadata = patiently(lambda: get_hf_file_metadata(url), place)
        file = _HubFile(self.fs, path, size=metadata.size)
        file.place, file.address = place, url
        return pa.PythonFile(file, mode="r")

    open_input_stream = open_input_file


class _HubFile(AbstractBufferedFile):
    """A file that is fetched a block at a time, from where it is read."""

    place: HubPath
    address: str

    def _fetch_range(self, start: int, end: int) -> bytes:
        def fetched() -> bytes:
            headers = {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
            response = http_backoff(
                "GET",
                self.address,
                headers={**build_hf_headers(), **headers},
                timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
            )
            hf_raise_for_status(response)
            data = bytes(response.content)
            # A mirror of the Hub may know no ranges.
            return data if response.status_code == 206 else data[start:end]

        return patiently(fetched, self.place)


def snapshot(place: HubPath) -> Path:
    """The dataset in this machine's cache of the Hub. UserError where it is not there, or not
    whole."""
    try:
        return Path(
            snapshot_download(
                place.repo, repo_type="dataset", revision=place.revision, local_files_only=True
            )
        )
    except (OSError, HFValidationError) as error:
        raise UserError(_line(error, place)) from None


def patiently(call: Callable[[], T], place: HubPath, connected: bool = True) -> T:
    """What the call gives, which is repeated while the Hub is too busy for it or out of reach.

    connected: whether a Hub to which there is no connection at all is waited for too. Raises
    UserError, in whose line nothing of the library's message is repeated: it holds signed URLs.
    """
    end, wait = time.monotonic() + PATIENCE_S, 1.0
    while True:
        try:
            return call()
        except (HTTPError, OSError, HFValidationError) as error:
            pause = max(wait, _asked_wait(error))
            hopeless = not connected and isinstance(error, (ConnectError, ConnectTimeout))
            if not _passes(error) or hopeless or time.monotonic() + pause > end:
                raise UserError(_line(error, place)) from None
        time.sleep(pause)
        wait = min(2 * wait, LONGEST_WAIT_S)


def _passes(error: BaseException) -> bool:
    """Whether the same request may be answered later."""
    status = _status(error) or 0
    return isinstance(error, TransportError) or status in (408, 429) or status >= 500


def _status(error: BaseException) -> int | None:
    return error.response.status_code if isinstance(error, HfHubHTTPError) else None


def _asked_wait(error: BaseException) -> float:
    """The seconds that the Hub asks for, if it does."""
    if not isinstance(error, HfHubHTTPError):
        return 0.0
    asked = error.response.headers.get("Retry-After", "")
    return float(asked) if asked.isdigit() else 0.0


def _line(error: BaseException, place: HubPath) -> str:
    """What is wrong, and what to do."""
    name, status = place.repo, _status(error)
    # The order matters: what is gated counts as not found, too.
    if isinstance(error, GatedRepoError):
        return (
            f"the dataset {name} is gated: ask for access at {_endpoint()}/datasets/{name}, and set"
            f" the token of the account that has it ({TOKEN})"
        )
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"the Hub has no dataset {name}, or a private one that your token does not open: check"
            f" the name, and set a token for a private one ({TOKEN})"
        )
    if isinstance(error, RevisionNotFoundError):
        return f"the dataset {name} has no revision {place.revision or 'main'}; name another"
    if isinstance(error, (LocalEntryNotFoundError, OfflineModeIsEnabled)):
        return offline_line(place)
    if isinstance(error, EntryNotFoundError):
        return f"the dataset {name} has no file {place.inner} at {place.revision or 'main'}"
    if isinstance(error, HFValidationError):
        return f"{name} can't be the name of a dataset; it reads org/name"
    if status == 401:
        return f"the Hub does not know your token; make a new one, or unset it ({TOKEN})"
    if status == 403:
        return f"your token may not read the dataset {name}; give it that right ({TOKEN})"
    if status == 429:
        return (
            "the Hub limits the rate of requests (HTTP 429), and more than once when asked again;"
            f" with a token the limit is higher ({TOKEN}); give the same command again later, it"
            " goes on where it stopped"
        )
    what = f"HTTP {status}" if status else type(error).__name__
    return (
        f"the Hub at {_endpoint()} does not give {place} ({what}); look to the network and to"
        " HF_ENDPOINT, and give the same command again, it goes on where it stopped"
    )


def offline_line(place: HubPath) -> str:
    """That this machine's cache does not hold the dataset."""
    revision = f" --revision {place.revision}" if place.revision else ""
    return (
        f"HF_HUB_OFFLINE is set, and {place.file('')} is not or not whole in this machine's cache"
        f" ({constants.HF_HUB_CACHE}); fetch it with `hf download {place.repo} --repo-type"
        f" dataset{revision}`, or unset HF_HUB_OFFLINE"
    )


def _endpoint() -> str:
    """Where the Hub is, without a user or a password."""
    parts = urlsplit(constants.ENDPOINT)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
