"""The locks of folders, on a disk and on an S3 server: one holder, and none that died keeps it."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import obstore
import pytest
from obstore.exceptions import AlreadyExistsError
from obstore.store import from_url

from instructdiff_ray.storage import locks
from instructdiff_ray.storage.filesystem import Folder
from instructdiff_ray.storage.locks import EXPIRE_S, LEASE, Lease, locked

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(params=["disk", "store"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    if request.param == "disk":
        return Folder(str(tmp_path / "folder"))
    return Folder(f"{request.getfixturevalue('bucket')}/{tmp_path.name}")


class Waiter(threading.Thread):
    """Another run that wants the lock."""

    def __init__(self, folder: Folder) -> None:
        super().__init__(daemon=True)
        self.folder = folder
        self.waits, self.has = threading.Event(), threading.Event()
        self.lines: list[str] = []
        self.start()

    def run(self) -> None:
        with locked(self.folder, self.waits.set, self.lines.append):
            self.has.set()


@contextmanager
def held(folder: Folder) -> Iterator[None]:
    lines: list[str] = []
    with locked(folder, lambda: pytest.fail("it is free"), lines.append):
        yield
    assert not lines


def test_one_holds_it_and_another_waits_until_it_is_given_back(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "POLL_S", 0.01)
    monkeypatch.setattr(locks, "RENEW_S", 0.01)  # it is written while it is waited for
    with held(folder):
        other = Waiter(folder)
        assert other.waits.wait(60)
        assert not other.has.wait(0.2)
    assert other.has.wait(60)
    other.join(60)
    with held(folder):
        pass


def test_who_raises_gives_it_back(folder: Folder) -> None:
    with pytest.raises(KeyError), held(folder):
        raise KeyError
    with held(folder):
        pass


HOLDS = """
import sys, time
from instructdiff_ray.storage.filesystem import Folder
from instructdiff_ray.storage.locks import locked
with locked(Folder(sys.argv[1]), print, print):
    print("held", flush=True)
    time.sleep(600)
"""


def test_of_a_holder_that_is_killed_it_is_taken_over(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "POLL_S", 0.05)
    command = [sys.executable, "-c", HOLDS, folder.path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as holder:
        assert holder.stdout and holder.stdout.readline() == "held\n"
        other = Waiter(folder)
        assert other.waits.wait(60)
        holder.send_signal(signal.SIGKILL)
    monkeypatch.setattr(locks, "EXPIRE_S", 0.5)
    assert other.has.wait(60)
    assert EXPIRE_S < 60  # the next run goes on within a minute


def test_a_holder_that_has_lost_it_does_not_take_it_back(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"{bucket}/lost"
    first, second = Lease(uri), Lease(uri)
    first.acquire(lambda: None)
    monkeypatch.setattr(locks, "EXPIRE_S", 0.0)  # as after a long pause of the first
    monkeypatch.setattr(locks, "POLL_S", 0.01)
    second.acquire(lambda: None)
    mine = obstore.get(from_url(uri, client_options={"allow_http": True}), LEASE)
    first.release()
    theirs = obstore.get(from_url(uri, client_options={"allow_http": True}), LEASE)
    assert mine.meta["e_tag"] == theirs.meta["e_tag"]
    second.release()


def test_where_no_lease_is_given_the_run_goes_on_and_says_so(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    lines: list[str] = []
    for path in (f"{bucket}/refused", "hdfs://machine/folder"):
        with locked(Folder(path), lambda: pytest.fail("nobody waits"), lines.append):
            pass
    assert all("can't be locked" in line and "\n" not in line for line in lines)
    assert len(lines) == 2


def test_a_holder_writes_its_lease_again_and_again(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "RENEW_S", 0.01)
    store = from_url(f"{bucket}/renewed", client_options={"allow_http": True})
    with held(Folder(f"{bucket}/renewed")):
        tags = set()
        while len(tags) < 3:
            tags.add(obstore.get(store, LEASE).meta["e_tag"])


def test_a_lease_whose_answer_was_lost_is_known_again(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, lost = obstore.put, []

    def losing(*arguments: Any, **options: Any) -> Any:
        answer = put(*arguments, **options)
        if not lost:
            lost.append(answer)
            raise AlreadyExistsError("as of a request that was sent again")
        return answer

    monkeypatch.setattr(obstore, "put", losing)
    with held(Folder(f"{bucket}/lost-answer")):
        assert lost
