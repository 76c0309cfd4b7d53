"""An artifact is finished or absent, whatever happens to its writer and wherever it lies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import fs as pafs

from instructdiff_ray.errors import DamagedFile, UserError
from instructdiff_ray.pool.files import find_files
from instructdiff_ray.pool.readers import read_rows
from instructdiff_ray.pool.source import FileRange
from instructdiff_ray.storage.artifacts import MANIFEST, Artifact, Storage, make_key
from instructdiff_ray.storage.filesystem import PARQUET, Folder, absolute, join, open_filesystem
from instructdiff_ray.storage.local_copy import local_copy

TABLE = pa.table({"sample_id": ["a", "b"], "tokens": [1, 2]})
SCALAR = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3)
)
JSON = (
    SCALAR | st.lists(SCALAR, max_size=3) | st.dictionaries(st.text(max_size=2), SCALAR, max_size=3)
)


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return Storage(str(tmp_path / "store")).artifact("pool", "0123")


def make(artifact: Artifact, data: bytes = b"12345") -> None:
    with artifact.writer() as writer:
        writer.folder.write_bytes("part.bin", data)
        writer.folder.sub("model").write_bytes("weights.bin", b"123")
        writer.finish({"seed": 1}, {"rows": 5})


def files_below(folder: Folder) -> list[Path]:
    return sorted(path for path in Path(folder.path).rglob("*") if path.is_file())


def test_an_artifact_is_absent_until_an_attempt_finishes_it(artifact: Artifact) -> None:
    assert artifact.finished() is None
    with artifact.writer() as writer:
        writer.folder.write_bytes("part.bin", b"12345")
        assert artifact.finished() is None
        made = writer.finish({"seed": 1}, {"rows": 5, "names": ["é"]})
    found = artifact.finished()
    assert found is not None
    assert found == made
    assert found.info == {"rows": 5, "names": ["é"]}
    assert found.folder.read_bytes("part.bin") == b"12345"
    assert found.folder.read_bytes("other.bin") is None


def test_the_manifest_tells_what_the_artifact_was_made_of(artifact: Artifact) -> None:
    make(artifact)
    manifest = json.loads((Path(artifact.home.path) / MANIFEST).read_bytes())
    assert (manifest["kind"], manifest["key"]) == ("pool", "0123")
    assert manifest["inputs"] == {"seed": 1}
    assert manifest["files"] == {"part.bin": 5, "model/weights.bin": 3}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_attempt_that_raises_leaves_nothing(
    artifact: Artifact, error: type[BaseException]
) -> None:
    with pytest.raises(error), artifact.writer() as writer:
        writer.folder.write_table("part.parquet", TABLE)
        writer.folder.sub("model").write_bytes("weights.bin", b"1")
        raise error
    assert artifact.finished() is None
    assert files_below(artifact.home) == []


def test_an_attempt_that_raises_does_no_harm_to_what_was_finished_before(
    artifact: Artifact,
) -> None:
    make(artifact)
    with pytest.raises(ValueError), artifact.writer() as writer:
        writer.folder.write_bytes("part.bin", b"other")
        raise ValueError
    found = artifact.finished()
    assert found is not None
    assert found.folder.read_bytes("part.bin") == b"12345"


def test_an_attempt_that_ends_without_finish_is_absent(artifact: Artifact) -> None:
    with artifact.writer() as writer:
        writer.folder.write_bytes("part.bin", b"12345")
    assert artifact.finished() is None


@pytest.mark.parametrize("name", ["part.bin", "model/weights.bin"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "longer", "folder"])
def test_a_damaged_artifact_is_absent_and_can_be_made_again(
    artifact: Artifact, name: str, damage: str
) -> None:
    make(artifact)
    found = artifact.finished()
    assert found is not None
    path = Path(found.folder.path) / name
    data = path.read_bytes()
    path.unlink()
    if damage == "truncated":
        path.write_bytes(data[:-1])
    elif damage == "longer":
        path.write_bytes(data + b"1")
    elif damage == "folder":
        path.mkdir()
    assert artifact.finished() is None
    make(artifact)
    assert artifact.finished() is not None


@pytest.mark.parametrize(
    "manifest",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"null",
        b"[]",
        b"7",
        b"{}",
        b'{"attempt": "a"}',
        b'{"attempt": 5, "files": {}, "info": {}}',
        b'{"attempt": "a", "files": [], "info": {}}',
        b'{"attempt": "a", "files": {"part.bin": 5}, "info": {}}',
        b"[" * 100_000,
    ],
    ids=lambda manifest: repr(manifest[:40]),
)
def test_a_garbage_manifest_counts_as_absent(artifact: Artifact, manifest: bytes) -> None:
    make(artifact)
    artifact.home.write_bytes(MANIFEST, manifest)
    assert artifact.finished() is None


def test_two_attempts_at_once_both_succeed(artifact: Artifact) -> None:
    with artifact.writer() as one, artifact.writer() as other:
        assert one.folder != other.folder
        one.folder.write_bytes("part.bin", b"one")
        other.folder.write_bytes("part.bin", b"other")
        first = one.finish({}, {"by": "one"})
        assert artifact.finished() == first
        second = other.finish({}, {"by": "other"})
    # The later manifest wins, and who holds the first result can still read it.
    assert artifact.finished() == second
    assert first.folder.read_bytes("part.bin") == b"one"
    assert second.folder.read_bytes("part.bin") == b"other"


def test_many_writers_at_once_leave_one_finished_artifact(artifact: Artifact) -> None:
    start, seen = threading.Barrier(8), []

    def write(number: int) -> None:
        start.wait()
        with artifact.writer() as writer:
            writer.folder.write_bytes("part.bin", b"%d" % number * 1000)
            writer.finish({}, {"by": number})
        seen.append(artifact.finished())

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 8
    for found in [*seen, artifact.finished()]:
        assert found is not None
        assert found.folder.read_bytes("part.bin") == b"%d" % found.info["by"] * 1000


def test_require_says_what_is_missing_and_how_to_make_it(artifact: Artifact) -> None:
    line = r"the pool is not in storage.*pool/0123.*`instructdiff ingest`"
    with pytest.raises(UserError, match=line):
        artifact.require("the pool", "run `instructdiff ingest` first")
    make(artifact)
    assert artifact.require("the pool", "run `instructdiff ingest` first") == artifact.finished()


def test_artifacts_of_other_keys_and_kinds_do_not_mix(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    make(storage.artifact("pool", "0123"))
    assert storage.artifact("pool", "0124").finished() is None
    assert storage.artifact("scores", "0123").finished() is None


def test_a_write_that_fails_leaves_the_old_file_and_none_where_there_was_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder(str(tmp_path))
    folder.write_bytes("old.bin", b"old")

    def no_space(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    for name in ("old.bin", "new.bin"):
        with pytest.raises(OSError, match="No space"):
            folder.write_bytes(name, b"new content")
    assert folder.read_bytes("old.bin") == b"old"
    assert folder.read_bytes("new.bin") is None


def test_a_writer_killed_in_the_middle_of_a_file_leaves_whole_files_only(tmp_path: Path) -> None:
    program = (
        "import itertools, sys\n"
        "from instructdiff_ray.storage.filesystem import Folder\n"
        "folder = Folder(sys.argv[1])\n"
        "for number in itertools.count():\n"
        "    folder.write_bytes('file.bin', b'%d' % (number % 10) * 1_000_000)\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)])
    folder, seen = Folder(str(tmp_path)), set()

    def unfinished() -> bool:
        return any(path.name != "file.bin" for path in tmp_path.iterdir())

    def check() -> None:
        data = folder.read_bytes("file.bin")
        if data is not None:
            assert (len(data), len(set(data))) == (1_000_000, 1)
            seen.add(data[0])

    try:
        while len(seen) < 3:
            assert writer.poll() is None
            check()
        # Let go and stopped, until it stands in a file that is not in its place yet.
        stopped = False
        while not (stopped and unfinished()):
            writer.send_signal(signal.SIGCONT)
            while not unfinished():
                assert writer.poll() is None
            writer.send_signal(signal.SIGSTOP)
            os.waitpid(writer.pid, os.WUNTRACED)
            stopped = True
    finally:
        writer.kill()
        writer.wait()
    assert unfinished()
    check()


def test_tables_and_json_come_back_as_they_were(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path)).sub("deep").sub("er")
    folder.write_table("index.parquet", TABLE)
    folder.write_json("summary.json", {"b": "ΔH", "a": [1]})
    assert folder.read_table("index.parquet") == TABLE
    assert folder.read_table("index.parquet", columns=["tokens"]) == TABLE.select(["tokens"])
    text = (Path(folder.path) / "summary.json").read_text(encoding="utf-8")
    assert text == '{\n  "a": [\n    1\n  ],\n  "b": "ΔH"\n}\n'


def test_a_file_is_written_as_it_is_whatever_its_name(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    folder.write_bytes("rows.jsonl.gz", b"not compressed")
    with folder.open_output("new/other.jsonl.gz") as stream:
        stream.write(b"neither")
    assert folder.read_bytes("rows.jsonl.gz") == b"not compressed"
    assert folder.read_bytes("new/other.jsonl.gz") == b"neither"
    assert folder.sizes() == {"rows.jsonl.gz": 14, "new/other.jsonl.gz": 7}


def test_delete_takes_a_file_or_a_folder_or_nothing(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path / "home"))
    folder.delete()
    folder.write_bytes("a", b"1")
    folder.write_bytes("sub/b", b"1")
    folder.delete("a")
    folder.delete("a")
    assert folder.sizes() == {"sub/b": 1}
    folder.delete()
    assert folder.sizes() == {}
    assert not (tmp_path / "home").exists()


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.dictionaries(st.text(max_size=3), JSON, max_size=4), st.randoms(use_true_random=False))
def test_a_key_depends_on_the_inputs_and_not_on_their_order(inputs: dict, rng: Any) -> None:
    items = list(inputs.items())
    rng.shuffle(items)
    key = make_key(**inputs)
    assert make_key(**dict(items)) == key
    assert len(key) == 16 and set(key) <= set("0123456789abcdef")
    assert make_key(**{**inputs, "one more": 1}) != key
    for name in inputs:
        assert make_key(**{**inputs, name: [inputs[name]]}) != key


def test_a_key_is_the_same_in_every_process_and_version() -> None:
    # Keys name what lies in storages already: another value would make all of it anew.
    assert make_key(seed=0, name="é", files=[{"size": 1}]) == "340125945762da32"
    assert make_key(ratio=0.1) != make_key(ratio="0.1")


@pytest.mark.parametrize("name", ["a b", "ä", "50%", "a#b", "a?b=c", "[x]", "a:b"])
def test_any_local_folder_name_works(tmp_path: Path, name: str) -> None:
    folder = Folder(absolute(str(tmp_path / name)))
    folder.write_table("t.parquet", TABLE)
    assert folder.read_table("t.parquet") == TABLE
    assert list(folder.sizes()) == ["t.parquet"]
    assert (tmp_path / name / "t.parquet").exists()


def test_paths_are_made_absolute_and_uris_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert absolute("~/pool") == "/home/me/pool"
    assert absolute("pool") == str(Path.cwd() / "pool")
    assert absolute("s3://bucket/pool/") == "s3://bucket/pool"
    assert absolute("abfss://container@account/x") == "abfss://container@account/x"


@pytest.mark.parametrize(
    "path", ["s3://AKIA:geheim@bucket/pool", "s3://bucket/pool?secret_key=geheim"]
)
def test_a_uri_that_holds_a_secret_is_refused_without_repeating_it(path: str) -> None:
    with pytest.raises(UserError, match="s3://.*bucket/pool: a .* in a URI is not taken") as told:
        absolute(path)
    assert "geheim" not in str(told.value) and "AKIA" not in str(told.value)
    assert join("s3://bucket/", "a/", "b") == "s3://bucket/a/b"


@pytest.mark.parametrize("path", ["htp://x/y", "relative/path", ""])
def test_a_path_of_no_known_kind_is_the_users_error(path: str) -> None:
    with pytest.raises(UserError, match="no path that can be opened"):
        open_filesystem(path)


def test_a_local_folder_is_its_own_local_copy(tmp_path: Path) -> None:
    assert local_copy(str(tmp_path)) == str(tmp_path)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "instructdiff_ray"


def test_a_remote_folder_is_copied_once_and_again_when_it_changes(
    tmp_path: Path, cache: Path
) -> None:
    # pyarrow's `file://` goes the way of every remote file system.
    remote = tmp_path / "model"
    (remote / "sub").mkdir(parents=True)
    (remote / "config.json").write_bytes(b"{}")
    (remote / "sub" / "a.bin").write_bytes(b"1")
    copies = [local_copy(f"file://{remote}") for _ in range(2)]
    assert copies[0] == copies[1] != str(remote)
    assert (Path(copies[0]) / "config.json").read_bytes() == b"{}"
    assert (Path(copies[0]) / "sub" / "a.bin").read_bytes() == b"1"
    (remote / "config.json").write_bytes(b'{"new": 1}')
    changed = local_copy(f"file://{remote}")
    assert (Path(changed) / "config.json").read_bytes() == b'{"new": 1}'
    assert (Path(copies[0]) / "config.json").read_bytes() == b"{}"
    assert len(copies_in(cache)) == 2


def test_a_copy_that_several_ask_for_at_once_is_one_and_never_seen_half_made(
    tmp_path: Path, cache: Path
) -> None:
    remote, size = tmp_path / "model", 30_000_000
    remote.mkdir()
    (remote / "weights.bin").write_bytes(bytes(size))
    copies: list[str] = []
    threads = [
        threading.Thread(target=lambda: copies.append(local_copy(f"file://{remote}")))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        for folder in (path for path in cache.glob("*") if not path.suffix):
            assert (folder / "weights.bin").stat().st_size == size
        time.sleep(0.001)
    assert len(copies) == 4
    assert copies_in(cache) == list(set(copies))


def copies_in(cache: Path) -> list[str]:
    """Copies, whole or not; the locks beside them stay."""
    return [str(path) for path in cache.iterdir() if path.suffix not in (".lock", ".used")]


USES = """
import sys, time
from instructdiff_ray.storage.local_copy import local_copy
print(local_copy(sys.argv[1]), flush=True)
time.sleep(600)
"""


def test_copies_make_room_the_longest_unused_first_and_none_that_is_used(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abcd":
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights.bin").write_bytes(bytes(1000))
    remote = {name: f"file://{tmp_path / name}" for name in "abcd"}

    def copied_elsewhere(name: str) -> Path:
        """By a process that has ended."""
        code = USES.replace("time.sleep(600)", "")
        command = [sys.executable, "-c", code, remote[name]]
        return Path(subprocess.check_output(command, text=True).strip())

    command = [sys.executable, "-c", USES, remote["a"]]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as user:
        assert user.stdout
        used = Path(user.stdout.readline().strip())
        older, newer = copied_elsewhere("b"), copied_elsewhere("c")
        for age, copy in enumerate((newer, older, used)):
            os.utime(copy, (1e9 - age, 1e9 - age))
        disk = SimpleNamespace(free=3000)
        monkeypatch.setattr("shutil.disk_usage", lambda _: disk)
        last = Path(local_copy(remote["d"]))  # half of 3,000 and three copies: three have room
        assert [path.exists() for path in (used, older, newer, last)] == [True, False, True, True]
        user.kill()


def test_a_remote_folder_that_is_missing_is_the_users_error(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(UserError, match="missing"):
        local_copy(f"file://{tmp_path}/missing")
    assert not cache.exists()


def test_a_copy_that_fails_leaves_nothing(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = tmp_path / "model"
    remote.mkdir()
    (remote / "weights.bin").write_bytes(b"1")

    def fail(_: str, target: str, **__: Any) -> None:
        (Path(target) / "weights.bin").write_bytes(b"")
        raise OSError("connection lost")

    with monkeypatch.context() as patch:
        patch.setattr(pafs, "copy_files", fail)
        with pytest.raises(OSError, match="connection lost"):
            local_copy(f"file://{remote}")
    assert copies_in(cache) == []
    assert (Path(local_copy(f"file://{remote}")) / "weights.bin").read_bytes() == b"1"


def test_an_artifact_in_an_object_store_is_finished_or_absent_too(
    bucket: str, tmp_path: Path, cache: Path
) -> None:
    artifact = Storage(f"{bucket}/store").artifact("models", "0123")
    assert artifact.finished() is None
    with pytest.raises(KeyError), artifact.writer() as writer:
        writer.folder.write_bytes("part.bin", b"12345")
        raise KeyError
    assert artifact.home.sizes() == {}

    local = tmp_path / "model"
    (local / "sub").mkdir(parents=True)
    (local / "weights.bin").write_bytes(bytes(100_000))
    (local / "sub" / "config.json").write_bytes(b"{}")
    with artifact.writer() as writer:
        writer.folder.write_table("index.parquet", TABLE)
        writer.folder.write_bytes("rows.jsonl.gz", b"as it is")
        with writer.folder.open_output("selected.jsonl") as stream:
            stream.write(b"{}\n")
        writer.folder.sub("model").upload(str(local))
        writer.finish({"seed": 1}, {"rows": 2})
    found = artifact.finished()
    assert found is not None
    assert found.info == {"rows": 2}
    assert found.folder.sizes() == {
        "index.parquet": len(pq_bytes(TABLE)),
        "rows.jsonl.gz": 8,
        "selected.jsonl": 3,
        "model/weights.bin": 100_000,
        "model/sub/config.json": 2,
    }
    assert found.folder.read_table("index.parquet", ["tokens"]) == TABLE.select(["tokens"])
    assert found.folder.read_bytes("rows.jsonl.gz") == b"as it is"
    assert found.folder.read_bytes("other") is None

    copy = Path(local_copy(found.folder.sub("model").path))
    assert copy.is_relative_to(cache)
    assert (copy / "weights.bin").read_bytes() == bytes(100_000)
    assert (copy / "sub" / "config.json").read_bytes() == b"{}"
    with pytest.raises(UserError, match=f"{bucket}/other"):
        local_copy(f"{bucket}/other")

    found.folder.delete("model/weights.bin")
    assert artifact.finished() is None
    artifact.home.delete()
    assert artifact.home.sizes() == {}


def test_pools_are_read_from_an_object_store(bucket: str) -> None:
    folder = Folder(f"{bucket}/pools")
    folder.write_bytes("b/second.jsonl", b'{"n": 3}\n')
    folder.write_bytes("a%20first.jsonl", b'{"n": 1}\n\n{"n": 2}')
    folder.write_bytes("README.md", b"# No rows")
    with pytest.raises(UserError, match=f"data.path={bucket}/missing does not exist"):
        find_files([f"{bucket}/missing"])
    files = find_files([f"{bucket}/pools/"])
    rows = [(file.path, row.line, row.text) for file in files for row in read_rows(FileRange(file))]
    assert rows == [
        (f"{bucket}/pools/a%20first.jsonl", 1, '{"n": 1}'),
        (f"{bucket}/pools/a%20first.jsonl", 3, '{"n": 2}'),
        (f"{bucket}/pools/b/second.jsonl", 1, '{"n": 3}'),
    ]
    assert all(file.mtime_ns > 0 for file in files)
    folder.delete("b/second.jsonl")
    # Gone between the listing and the reading: an error that names it, not a row less.
    with pytest.raises(UserError, match="second"):
        list(read_rows(FileRange(files[1])))


def pq_bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, **PARQUET)
    return bytes(sink.getvalue())


LONG = pa.table(
    {"sample_id": [f"{n:032x}" for n in range(500)], "nll": [n / 7 for n in range(500)]}
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_damage_is_noticed_and_the_file_is_gone(data: st.DataObject) -> None:
    """Any bit of the pages, and any truncation; a Parquet file's footer has no checksum."""
    with tempfile.TemporaryDirectory() as path:
        folder = Folder(path)
        folder.write_table("t.parquet", LONG)
        raw = bytearray(Path(path, "t.parquet").read_bytes())
        footer = int.from_bytes(raw[-8:-4], "little") + 8
        if data.draw(st.booleans()):
            del raw[data.draw(st.integers(0, len(raw) - 1)) :]
        else:
            place = data.draw(st.integers(0, len(raw) - footer - 1))
            raw[place] ^= 1 << data.draw(st.integers(0, 7))
        Path(path, "t.parquet").write_bytes(raw)
        try:
            assert folder.read_table("t.parquet") == LONG  # a bit that means nothing
        except DamagedFile as error:
            assert "was damaged and is deleted" in str(error)
            assert folder.sizes() == {}


def test_tables_are_written_and_read_by_row_group(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    with folder.open_table("t.parquet", LONG.schema) as write:
        write(LONG.slice(0, 100))
        write(LONG.slice(100))
    groups = list(folder.read_row_groups("t.parquet"))
    assert [group.num_rows for group in groups] == [100, 400]
    assert pa.concat_tables(groups) == LONG
    raw = bytearray((tmp_path / "t.parquet").read_bytes())
    raw[len(raw) // 2] ^= 1
    (tmp_path / "t.parquet").write_bytes(raw)
    with pytest.raises(DamagedFile):
        list(folder.read_row_groups("t.parquet"))
    assert not (tmp_path / "t.parquet").exists()


MAKER = """
import sys, time
from instructdiff_ray.storage.artifacts import Storage
artifact = Storage(sys.argv[1]).artifact("kind", "key")
with artifact.lock(print) as finished:
    print("found" if finished else "makes", flush=True)
    if finished is None:
        sys.stdin.readline()
        with artifact.writer() as writer:
            writer.folder.write_bytes("made", sys.argv[2].encode())
            writer.finish({}, {})
"""


def maker(root: Path, name: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", MAKER, str(root), name]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)


def test_of_two_runs_at_once_one_makes_an_artifact_and_the_other_waits_for_it(
    tmp_path: Path,
) -> None:
    first = maker(tmp_path, "first")
    assert first.stdout and first.stdout.readline() == "makes\n"
    second = maker(tmp_path, "second")
    assert second.stdout and "another run makes kind/key" in second.stdout.readline()
    first.communicate("go\n")
    assert second.communicate()[0] == "found\n"
    found = Storage(str(tmp_path)).artifact("kind", "key").finished()
    assert found and found.folder.read_bytes("made") == b"first"


def test_the_turn_of_a_run_that_was_killed_goes_to_the_next(tmp_path: Path) -> None:
    first = maker(tmp_path, "first")
    assert first.stdout and first.stdout.readline() == "makes\n"
    second = maker(tmp_path, "second")
    assert second.stdout and "waiting" in second.stdout.readline()
    first.kill()
    first.wait()
    assert second.stdout.readline() == "makes\n"
    second.communicate("go\n")
    assert Storage(str(tmp_path)).artifact("kind", "key").finished()
