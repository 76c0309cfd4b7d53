"""Locks of folders: a file's lock on a disk, a lease in an object store.

A *lease* is an object that its holder writes again every few seconds, on the condition that nobody
else has (S3, Google Cloud Storage and Azure know such conditions). Whoever sees it unchanged for
longer than a holder that lives would leave it takes it over. Only time that passes here is
measured, for the clocks of two machines differ. A holder that was only slow may so lose it and
write on: a lease saves work, and what it guards must be right without it.
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import obstore
from filelock import FileLock, Timeout
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
from obstore.store import from_url

from instructdiff_ray.storage.filesystem import Folder, is_uri, join

LOCK, LEASE = ".lock", ".lease"
RENEW_S = 10.0  # a holder writes its lease as often
EXPIRE_S = 40.0  # a lease that was not written for so long is nobody's
POLL_S = 2.0
RELEASED = b"released "


@contextmanager
def locked(folder: Folder, waits: Callable[[], None], say: Callable[[str], None]) -> Iterator[None]:
    """Holds the folder's lock. waits: called once where another run holds it.

    Where a store gives no lease, because it refuses the credentials of the environment or knows no
    conditions, `say` is told and nothing is locked.
    """
    if not is_uri(folder.path):
        with _file_locked(folder, waits):
            yield
        return
    lease = _acquired(folder, waits, say)
    try:
        yield
    finally:
        if lease:
            lease.release()


def _acquired(
    folder: Folder, waits: Callable[[], None], say: Callable[[str], None]
) -> Lease | None:
    try:
        lease = Lease(folder.path)
        lease.acquire(waits)
    except (BaseError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        say(f"{folder.path} can't be locked ({reason}); another run may do the same work twice")
        return None
    return lease


@contextmanager
def _file_locked(folder: Folder, waits: Callable[[], None]) -> Iterator[None]:
    os.makedirs(folder.path, exist_ok=True)
    lock = FileLock(join(folder.path, LOCK))  # released when its process dies
    try:
        lock.acquire(timeout=0)
    except Timeout:
        waits()
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


class Lease:
    """The lease of the folder at this URI. Raises ValueError for a kind of store that has none."""

    def __init__(self, uri: str) -> None:
        self._holder = uuid.uuid4().hex
        self._store = from_url(
            uri,
            client_options={"allow_http": True, "timeout": "10s"},
            retry_config={"max_retries": 5},
        )
        self._version: obstore.UpdateVersion = {}  # of the lease as this holder last wrote it
        self._released = threading.Event()
        self._renewing = threading.Thread(target=self._renew, daemon=True)

    def acquire(self, waits: Callable[[], None]) -> None:
        """Take the lease, when it is free. Raises BaseError where the store refuses."""
        seen: obstore.UpdateVersion = {}
        since, waited = 0.0, False
        while not self._write("create"):
            data, version = self._read()
            if not version:  # it was deleted meanwhile
                continue
            if version != seen:
                seen, since = version, time.monotonic()
            expired = time.monotonic() - since > EXPIRE_S
            ours = data.startswith(self._holder.encode())  # an answer that was lost
            if (ours or expired or data.startswith(RELEASED)) and self._write(version):
                break
            if not waited:
                waited = True
                waits()
            time.sleep(POLL_S)
        self._renewing.start()

    def release(self) -> None:
        """Give it back, if it was not lost."""
        self._released.set()
        self._renewing.join()
        with suppress(BaseError):  # it expires
            self._write(self._version, RELEASED)

    def _renew(self) -> None:
        while not self._released.wait(RENEW_S):
            with suppress(BaseError):  # a store that does not answer may do so the next time
                if not self._write(self._version) and not self._is_ours():
                    return

    def _write(self, mode: obstore.PutMode, what: bytes = b"") -> bool:
        """Write the lease, on this condition; False where it does not hold."""
        # Never the same twice, for some stores' tags are hashes of the content.
        data = what + f"{self._holder} {uuid.uuid4().hex}".encode()
        try:
            self._version = _version(obstore.put(self._store, LEASE, data, mode=mode))
        except (AlreadyExistsError, PreconditionError):
            return False
        return True

    def _is_ours(self) -> bool:
        """Whether it was written by this holder last, who has not heard of it."""
        data, version = self._read()
        if not data.startswith(self._holder.encode()):
            return False
        self._version = version
        return True

    def _read(self) -> tuple[bytes, obstore.UpdateVersion]:
        try:
            found = obstore.get(self._store, LEASE)
        except FileNotFoundError:
            return b"", {}
        return bytes(found.bytes()), _version(found.meta)


def _version(of: obstore.PutResult | obstore.ObjectMeta) -> obstore.UpdateVersion:
    """What a store calls this state of an object: a tag, a number, or both."""
    version: obstore.UpdateVersion = {}
    if of["e_tag"] is not None:
        version["e_tag"] = of["e_tag"]
    if of["version"] is not None:
        version["version"] = of["version"]
    return version
