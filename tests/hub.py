"""A Hub of this process: datasets in repositories with commits, answered as the Hub answers.

The paths, headers and error codes are those that huggingface_hub reads. It counts what it is asked,
and can fail on purpose.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock
from urllib.parse import parse_qs, unquote, urlsplit

from huggingface_hub import constants
from werkzeug.serving import WSGIRequestHandler, make_server
from werkzeug.wrappers import Request, Response

# Large files are not the Hub's to give: it redirects to where they are.
LARGE = (".parquet", ".arrow")
CONVERTED = "refs/convert/parquet"


@dataclass
class Repo:
    """refs: branches and tags to commits; commits: what each holds.

    gated: its files are read with the tokens of `readers`; private: it is there for them alone.
    """

    refs: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: bool = False
    private: bool = False
    readers: tuple[str, ...] = ()

    def push(self, files: dict[str, bytes], ref: str = "main") -> str:
        """A new commit that holds these files and no others."""
        digest = hashlib.sha1()
        for name, data in sorted(files.items()):
            digest.update(f"{name} {len(data)} ".encode() + data)
        commit = digest.hexdigest()
        self.commits[commit], self.refs[ref] = dict(files), commit
        return commit


class Refused(Exception):
    """An answer with an error, as the Hub gives it."""

    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        super().__init__(code)
        headers = {"X-Error-Code": code, "X-Error-Message": message}
        self.response = Response(
            json.dumps({"error": message}), status, {k: v for k, v in headers.items() if v}
        )


class Hub:
    """repos: by name. tokens: those that it knows.

    asked: how often for its API, for a file's size (`head`), and for a file or its range (`get`).
    sent: bytes of files. limited: so many requests more are answered 429; cut: so many answers with
    bytes of files more break off. page: entries of a listing in one answer.
    passing: so many requests for bytes more are answered, others wait until `open`; None: all are.
    """

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.tokens: tuple[str, ...] = ()
        self.asked: Counter[str] = Counter()
        self.sent = self.limited = self.cut = 0
        self.page = 1000
        self.passing: int | None = None
        self._lock = threading.Lock()
        self._gate = threading.Condition(self._lock)
        self._waiting = 0
        logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it notes every request
        self._server = make_server(
            "127.0.0.1", 0, self._answer, threaded=True, request_handler=WSGIRequestHandler
        )
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self.environment = {"HF_ENDPOINT": self.endpoint, "HF_HUB_OFFLINE": "0", "HF_TOKEN": ""}

    def repo(self, name: str, files: dict[str, bytes], **settings: Any) -> Repo:
        """A new dataset with these files on its main branch."""
        repo = self.repos[name] = Repo(**settings)
        self.tokens += repo.readers
        repo.push(files)
        return repo

    def stop(self) -> None:
        self.open()
        self._server.shutdown()

    def open(self) -> None:
        """Whoever waits may pass, and all that come."""
        with self._gate:
            self.passing = None
            self._gate.notify_all()

    def wait_for_reader(self) -> None:
        """Returns when a request for bytes waits."""
        with self._gate:
            self._gate.wait_for(lambda: self._waiting)

    def _answer(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        request = Request(environ)
        # As it was sent: a slash within a branch's name is escaped.
        url = urlsplit(environ["REQUEST_URI"])
        pieces = [unquote(piece) for piece in url.path.strip("/").split("/")]
        if pieces[0] == "api" and pieces[1] != "datasets":
            # The library asks once for the names of agents, to tell the Hub which one uses it.
            return Response(status=404)(environ, start_response)
        try:
            with self._lock:
                kind = "api" if pieces[0] == "api" else request.method.lower()
                self.asked[kind] += pieces[0] != "cdn"
                self.limited -= (limited := self.limited > 0)
            if limited:
                response = Response('{"error": "Too Many Requests"}', 429, {"Retry-After": "0"})
            elif pieces[0] == "api":
                response = self._api(request, pieces[2:], parse_qs(url.query))
            elif pieces[0] == "cdn":
                response = self._bytes(request, self.repos["/".join(pieces[1:3])], pieces[3:])
            else:
                response = self._resolve(request, pieces[1:])
        except Refused as refused:
            response = refused.response
        cut = False
        if pieces[0] != "api" and response.status_code in (200, 206):
            cut = self._sends(request, response)
        answer = response(environ, start_response)
        return _broken(answer) if cut else answer

    def _sends(self, request: Request, response: Response) -> bool:
        """Counts what is sent; whether it is to break off."""
        if request.method != "GET":
            return False
        with self._gate:
            if self.passing == 0:
                self._waiting += 1
                self._gate.notify_all()
                self._gate.wait_for(lambda: self.passing is None)
                self._waiting -= 1
            elif self.passing is not None:
                self.passing -= 1
            self.sent += len(response.data)
            self.cut -= (cut := self.cut > 0)
        return cut

    def _token(self, request: Request) -> str | None:
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in self.tokens:
            raise Refused(401, message="Invalid credentials in Authorization header")
        return token or None

    def _opened(self, request: Request, name: str) -> Repo:
        token, repo = self._token(request), self.repos.get(name)
        if repo is None or (repo.private and token not in repo.readers):
            message = "Repository not found" if token else "Invalid username or password."
            raise Refused(404 if token else 401, "RepoNotFound", message)
        return repo

    def _check_access(self, request: Request, repo: Repo) -> None:
        token = self._token(request)
        if repo.gated and token not in repo.readers:
            raise Refused(403 if token else 401, "GatedRepo", "Access is restricted.")

    def _commit(self, repo: Repo, revision: str) -> str:
        commit = repo.refs.get(revision, revision)
        if commit not in repo.commits:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    def _api(self, request: Request, pieces: list[str], query: dict[str, list[str]]) -> Response:
        name, what = "/".join(pieces[:2]), pieces[2:]
        repo = self._opened(request, name)
        if what == ["auth-check"]:
            self._check_access(request, repo)
            return Response("{}")
        if what == ["refs"]:
            return _json(
                {
                    "branches": [_ref(ref, repo) for ref in repo.refs if "/" not in ref],
                    "converts": [_ref(ref, repo) for ref in repo.refs if ref == CONVERTED],
                    "tags": [],
                }
            )
        if what and what[0] == "tree":
            return self._tree(repo, name, what[1], int(query.get("cursor", ["0"])[0]))
        commit = self._commit(repo, what[1] if what else "main")
        siblings = [{"rfilename": file} for file in repo.commits[commit]]
        gated = "auto" if repo.gated else False
        return _json({"id": name, "sha": commit, "gated": gated, "siblings": siblings})

    def _tree(self, repo: Repo, name: str, revision: str, start: int) -> Response:
        files = repo.commits[self._commit(repo, revision)]
        folders = {file[:place] for file in files for place in _slashes(file)}
        entries: list[dict[str, Any]] = [
            {"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in folders
        ]
        entries += [
            {"type": "file", "path": path, "oid": "0" * 40, "size": len(data)}
            for path, data in files.items()
        ]
        entries.sort(key=lambda entry: str(entry["path"]))
        response = _json(entries[start : start + self.page])
        if start + self.page < len(entries):
            path = f"/api/datasets/{name}/tree/{revision}?recursive=True&cursor={start + self.page}"
            response.headers["Link"] = f'<{self.endpoint}{path}>; rel="next"'
        return response

    def _resolve(self, request: Request, pieces: list[str]) -> Response:
        name, revision, path = "/".join(pieces[:2]), pieces[3], "/".join(pieces[4:])
        repo = self._opened(request, name)
        self._check_access(request, repo)
        commit = self._commit(repo, revision)
        if path not in repo.commits[commit]:
            raise Refused(404, "EntryNotFound", "Entry not found")
        data = repo.commits[commit][path]
        etag = hashlib.sha1(data).hexdigest()
        headers = {"X-Repo-Commit": commit, "ETag": f'"{etag}"'}
        if not path.endswith(LARGE):
            response = self._bytes(request, repo, [commit, path])
            response.headers.update(headers)
            return response
        headers |= {"X-Linked-Size": str(len(data)), "X-Linked-ETag": f'"{etag}"'}
        headers["Location"] = f"{self.endpoint}/cdn/{name}/{commit}/{path}?Signature=signed"
        return Response("", 302, headers)

    def _bytes(self, request: Request, repo: Repo, pieces: list[str]) -> Response:
        data = repo.commits[pieces[0]]["/".join(pieces[1:])]
        if request.range is None:
            return Response(data, headers={"Accept-Ranges": "bytes"})
        start, end = request.range.range_for_length(len(data)) or (0, 0)
        return Response(
            data[start:end], 206, {"Content-Range": f"bytes {start}-{end - 1}/{len(data)}"}
        )


def _ref(ref: str, repo: Repo) -> dict[str, str]:
    full = ref if "/" in ref else f"refs/heads/{ref}"
    return {"name": ref.rsplit("/", 1)[-1], "ref": full, "targetCommit": repo.refs[ref]}


def _slashes(path: str) -> list[int]:
    return [place for place, letter in enumerate(path) if letter == "/"]


def _json(value: Any) -> Response:
    return Response(json.dumps(value), content_type="application/json")


def _broken(answer: Iterable[bytes]) -> Iterator[bytes]:
    """Half of an answer, and then the connection breaks."""
    whole = b"".join(answer)
    yield whole[: len(whole) // 2]
    raise ConnectionAbortedError


@contextmanager
def serving(cache: str) -> Iterator[Hub]:
    """A Hub that this process finds as its own, and those that it starts with `environment`.

    cache: a folder for what is downloaded, and for a login's token. huggingface_hub reads its
    variables when it is imported, so here what it has made of them is replaced.
    """
    hub = Hub()
    hub.environment["HF_HOME"] = cache
    settings = {
        "ENDPOINT": hub.endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False,
        "HF_HUB_CACHE": f"{cache}/hub",
        "HF_TOKEN_PATH": f"{cache}/token",
    }
    try:
        with (
            mock.patch.dict(os.environ, hub.environment),
            mock.patch.multiple(constants, **settings),
        ):
            yield hub
    finally:
        hub.stop()
