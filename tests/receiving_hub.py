"""A stand-in for the Hugging Face Hub: it takes data sets, and keeps what was committed."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_of_a_writer"


class Hub:
    """repositories: name → whether it is private; files: name → path → content; commits: name →
    the summary of each; broken: answers 503 to every commit."""

    def __init__(self) -> None:
        self.repositories: dict[str, bool] = {}
        self.files: dict[str, dict[str, bytes]] = {}
        self.commits: dict[str, list[str]] = {}
        self.broken = False
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *arguments: Any) -> None:
                pass

            def do_GET(self) -> None:
                self.answer(*hub.get(self.path))

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                    return self.answer(401, {"error": "Invalid username or password."})
                return self.answer(*hub.post(self.path, body))

            def answer(self, status: int, value: Any) -> None:
                data = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def get(self, path: str) -> tuple[int, Any]:
        name = path.removeprefix("/api/datasets/").partition("?")[0].partition("/revision")[0]
        if name not in self.repositories:
            return 404, {"error": "Repository not found"}
        siblings = [{"rfilename": file} for file in [".gitattributes", *self.files[name]]]
        private = self.repositories[name]
        return 200, {"id": name, "private": private, "siblings": siblings, "sha": "0" * 40}

    def post(self, path: str, body: bytes) -> tuple[int, Any]:
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path == "/api/repos/create":
            asked = json.loads(body)
            assert asked["type"] == "dataset"
            name = f"{asked['organization']}/{asked['name']}"
            if asked["organization"] == "others":
                return 403, {"error": "You don't have the rights to create a dataset there"}
            url = f"{self.endpoint}/datasets/{name}"
            if name in self.repositories:
                return 409, {"error": "You already created this dataset repo", "url": url}
            self.repositories[name] = asked["visibility"] == "private"
            self.files[name], self.commits[name] = {}, []
            return 200, {"url": url}
        name, _, action = path.removeprefix("/api/datasets/").rpartition("/main")[0].rpartition("/")
        if action == "preupload":
            files = [file["path"] for file in json.loads(body)["files"]]
            regular = {"uploadMode": "regular", "shouldIgnore": False}
            return 200, {"files": [{"path": file, **regular} for file in files]}
        assert action == "commit", path
        if self.broken:
            return 503, {"error": "Service unavailable"}
        lines = [json.loads(line) for line in body.splitlines()]
        self.commits[name].append(lines[0]["value"]["summary"])
        for line in lines[1:]:
            assert line["key"] == "file"
            self.files[name][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        return 200, {"commitUrl": f"{self.endpoint}/datasets/{name}/commit/1", "commitOid": "1"}


@contextmanager
def serving() -> Iterator[Hub]:
    hub = Hub()
    try:
        yield hub
    finally:
        hub.server.shutdown()
        hub.server.server_close()
