"""An S3 server of this process, which counts what it is asked and can fail on purpose."""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from moto.moto_server.werkzeug_app import (
    DomainDispatcherApplication,
    MotoRequestHandler,
    create_backend_app,
)
from pyarrow import fs as pafs
from werkzeug.serving import make_server

BUCKET = "bucket"
SLOW_S = 0.5


class Server:
    """uri: of its bucket. environment: the variables by which users name theirs.

    read, written: path → how often it, or its size, was asked for, and how often it was put.
    trouble: the share of requests that are answered 503, cut off, or answered late, each a third;
        where it is 1, all are answered 503.
    """

    def __init__(self) -> None:
        self.read: Counter[str] = Counter()
        self.written: Counter[str] = Counter()
        self.trouble = 0.0
        logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it notes every request
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._random, self._lock = random.Random(0), threading.Lock()
        self._server = make_server(
            "127.0.0.1", 0, self._answer, threaded=True, request_handler=MotoRequestHandler
        )
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.uri = f"s3://{BUCKET}"
        endpoint = f"127.0.0.1:{self._server.server_port}"
        self.environment = {
            "AWS_ENDPOINT_URL": f"http://{endpoint}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        with mock.patch.dict(os.environ, self.environment):
            store = pafs.S3FileSystem(
                endpoint_override=endpoint, scheme="http", allow_bucket_creation=True
            )
            store.create_dir(BUCKET)

    def reads(self) -> int:
        """Requests for objects and lists, and for objects' sizes."""
        return sum(self.read.values())

    def stop(self) -> None:
        self._server.shutdown()

    def _answer(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        with self._lock:
            self.read[path] += method in ("GET", "HEAD")
            self.written[path] += method == "PUT"
            kind = self._random.choice("fcl") if self._random.random() < self.trouble else ""
            kind = "f" if self.trouble == 1 else kind
        if kind == "f":
            start_response("503 Slow Down", [("Content-Length", "0")])
            return []
        if kind == "l":
            time.sleep(SLOW_S)
        answer = self._moto(environ, start_response)
        return _cut(answer) if kind == "c" else answer


def _cut(answer: Iterable[bytes]) -> Iterator[bytes]:
    """Half of an answer, and then the connection breaks."""
    whole = b"".join(answer)
    yield whole[: len(whole) // 2]
    raise ConnectionAbortedError


@contextmanager
def serving() -> Iterator[Server]:
    """A server that this process and those that it starts find by their environment."""
    server = Server()
    try:
        with mock.patch.dict(os.environ, server.environment):
            yield server
    finally:
        server.stop()
