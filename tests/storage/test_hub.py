"""Datasets of the Hub: pinned, listed, read in ranges, and what is said where that fails."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import constants, snapshot_download

from instructdiff_ray.errors import UserError
from instructdiff_ray.pool.readers import count_newlines, read_rows
from instructdiff_ray.pool.source import FileRange, SourceFile
from instructdiff_ray.storage import hub_client
from instructdiff_ray.storage.filesystem import open_filesystem
from instructdiff_ray.storage.hub import pin, read_contents
from instructdiff_ray.storage.hub_client import HubPath
from tests.hub import Hub, serving

TOKEN = "hf_secretTokenOfAReader"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with serving(str(tmp_path / "home")) as server:
        yield server


def rows(count: int, start: int = 0) -> bytes:
    lines = ({"question": f"{n} + 1?", "answer": str(n + 1)} for n in range(start, start + count))
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def parquet(table: pa.Table, **options: object) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return sink.getvalue()


def file_of(place: HubPath, name: str, format: str) -> SourceFile:
    size = read_contents(place).sizes[name]
    return SourceFile(str(place.file(name)), format, size, 0)


def line_of(name: str, **settings: str) -> str:
    with pytest.raises(UserError) as raised:
        place = pin(HubPath(name, **settings))
        read_contents(place)
    line = str(raised.value)
    assert "\n" not in line
    assert TOKEN not in line
    return line


@pytest.mark.parametrize(
    "path",
    [
        "hf://datasets/org/name",
        "hf://datasets/org/name@v1.0",
        "hf://datasets/org/name@refs%2Fconvert%2Fparquet/default/train",
        "hf://datasets/org/name/data/*.parquet",
        "hf://datasets/org/name@main/a%20b%23%25%3F.jsonl",
    ],
)
def test_a_path_comes_back_from_what_it_was_parsed_to(path: str) -> None:
    assert str(HubPath.parse(path)) == path


def test_a_special_branch_may_be_written_with_its_slashes() -> None:
    place = HubPath.parse("hf://datasets/org/name@refs/convert/parquet/default/train")
    assert place == HubPath("org/name", "refs/convert/parquet", "default/train")


@pytest.mark.parametrize("path", ["hf://org/model", "hf://datasets/org", "hf://buckets/org/name/x"])
def test_what_is_no_dataset_is_refused(path: str) -> None:
    with pytest.raises(UserError, match="names no dataset of the Hub"):
        HubPath.parse(path)


def test_a_revision_is_pinned_to_its_commit(hub: Hub) -> None:
    repo = hub.repo("org/name", {"a.jsonl": rows(1)})
    first = repo.refs["main"]
    repo.refs["v1"] = first
    second = repo.push({"a.jsonl": rows(2)})
    assert pin(HubPath("org/name")).revision == second
    assert pin(HubPath("org/name", "v1", "a.jsonl")) == HubPath("org/name", first, "a.jsonl")
    assert pin(HubPath("org/name", first)).revision == first
    assert "no revision v2; name another" in line_of("org/name", revision="v2")


def test_a_listing_has_all_pages_and_is_asked_for_once(hub: Hub) -> None:
    hub.page = 7
    files = {f"data/{n:03}.jsonl": rows(n) for n in range(30)}
    hub.repo("org/name", files)
    place = pin(HubPath("org/name"))
    for _ in range(3):
        assert read_contents(place).sizes == {name: len(data) for name, data in files.items()}
    assert hub.asked["api"] == 1 + -(-31 // 7)  # with the folder, 31 entries


def test_a_range_is_read_without_the_rest_of_the_file(hub: Hub) -> None:
    whole = b"".join(b'{"text": "%06d %s"}\n' % (n, b"x" * 8000) for n in range(3200))
    assert len(whole) > 24 << 20
    hub.repo("org/name", {"a.jsonl": whole})
    file = file_of(pin(HubPath("org/name")), "a.jsonl", "jsonl")
    start, end = 8 << 20, 9 << 20
    expected = whole[whole.index(b"\n", start - 1) + 1 : whole.index(b"\n", end - 1)]
    read = [row.text for row in read_rows(FileRange(file, start, end))]
    assert read == expected.decode().split("\n")
    assert hub.sent < 8 << 20
    hub.sent = 0
    assert count_newlines(file, start, end) == whole.count(b"\n", start, end)
    assert hub.sent < 8 << 20


def test_row_groups_of_a_parquet_file_are_read_without_the_others(hub: Hub) -> None:
    texts = [os.urandom(24_000).hex() for _ in range(400)]
    data = parquet(pa.table({"text": texts}), row_group_size=100, use_dictionary=False)
    hub.repo("org/name", {"a.parquet": data})
    file = file_of(pin(HubPath("org/name")), "a.parquet", "parquet")
    metadata = pq.ParquetFile(io.BytesIO(data)).metadata
    starts = [metadata.row_group(n).column(0).data_page_offset for n in range(4)]
    read = list(read_rows(FileRange(file, starts[2] - 8, starts[3] - 8)))
    assert [row.line for row in read] == list(range(201, 301))
    assert [json.loads(row.text)["text"] for row in read] == texts[200:300]
    assert hub.sent < len(data) * 0.75


def test_reading_files_asks_nothing_of_the_api(hub: Hub) -> None:
    names = [f"{n:03}.jsonl" for n in range(50)]
    hub.repo("org/name", {name: rows(5) for name in names})
    place = pin(HubPath("org/name"))
    files = [file_of(place, name, "jsonl") for name in names]
    assert hub.asked["api"] == 2
    for file in files:
        assert len(list(read_rows(FileRange(file)))) == 5
    assert hub.asked == {"api": 2, "head": 50, "get": 50}


def test_text_and_compressed_files_are_read(hub: Hub) -> None:
    sources = {
        "a.jsonl.gz": gzip.compress(rows(9)),
        "a.json": b"[" + b",".join(rows(9).splitlines()) + b"]",
        "a.csv": b"question,answer\n" + b"".join(b"%d,%d\n" % (n, n) for n in range(9)),
    }
    hub.repo("org/name", sources)
    place = pin(HubPath("org/name"))
    for name, format in (("a.jsonl.gz", "jsonl"), ("a.json", "json"), ("a.csv", "csv")):
        read = list(read_rows(FileRange(file_of(place, name, format))))
        assert [row.reason for row in read] == [None] * 9


def test_files_of_any_name_are_read(hub: Hub) -> None:
    names = ["a b.jsonl", "50%.jsonl", "a#b.jsonl", "ä.jsonl", "a?.jsonl", "a@b.jsonl", "[a].jsonl"]
    hub.repo("org/name", {f"d/{name}": rows(2) for name in names})
    place = pin(HubPath("org/name"))
    for name in names:
        assert len(list(read_rows(FileRange(file_of(place, f"d/{name}", "jsonl"))))) == 2


def test_a_token_opens_a_gated_dataset(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repo("org/gated", {"a.parquet": b"PAR1"}, gated=True, readers=(TOKEN,))
    hub.tokens += ("hf_anotherUser",)
    line = line_of("org/gated")
    assert "is gated: ask for access at" in line
    assert f"{hub.endpoint}/datasets/org/gated" in line
    assert "HF_TOKEN" in line
    monkeypatch.setenv("HF_TOKEN", "hf_anotherUser")
    assert "is gated" in line_of("org/gated")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert read_contents(pin(HubPath("org/gated"))).sizes == {"a.parquet": 4}


def test_the_token_of_a_login_opens_a_private_dataset(hub: Hub) -> None:
    hub.repo("org/private", {"a.jsonl": rows(3)}, private=True, readers=(TOKEN,))
    assert "or a private one that your token does not open" in line_of("org/private")
    Path(constants.HF_TOKEN_PATH).parent.mkdir(parents=True)
    Path(constants.HF_TOKEN_PATH).write_text(TOKEN)
    place = pin(HubPath("org/private"))
    assert len(list(read_rows(FileRange(file_of(place, "a.jsonl", "jsonl"))))) == 3


@pytest.mark.parametrize(
    ("settings", "said"), [({"gated": True}, "gated"), ({"private": True}, "private")]
)
def test_a_worker_without_the_token_says_so(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, settings: dict, said: str
) -> None:
    hub.repo("org/name", {"a.parquet": b"PAR1"}, readers=(TOKEN,), **settings)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    file = file_of(pin(HubPath("org/name")), "a.parquet", "parquet")
    monkeypatch.setenv("HF_TOKEN", "")
    with pytest.raises(UserError, match=f"{said}.*in the environment of all workers"):
        list(read_rows(FileRange(file)))


def test_a_token_that_the_hub_does_not_know_is_told(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repo("org/name", {"a.jsonl": rows(1)})
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert "the Hub does not know your token" in line_of("org/name")


def test_a_rate_limit_is_waited_for(hub: Hub) -> None:
    hub.repo("org/name", {"a.jsonl": rows(3)})
    hub.limited = 1
    place = pin(HubPath("org/name"))
    file = file_of(place, "a.jsonl", "jsonl")
    hub.limited = 1
    assert len(list(read_rows(FileRange(file)))) == 3
    assert hub.limited == 0


def test_a_rate_limit_that_stays_ends_in_one_line(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_client, "PATIENCE_S", 0)
    hub.repo("org/name", {"a.jsonl": rows(3)})
    hub.limited = 1000
    assert "HTTP 429" in line_of("org/name")


def test_an_answer_that_breaks_off_is_asked_for_again(hub: Hub) -> None:
    hub.repo("org/name", {"a.jsonl": rows(1000)})
    file = file_of(pin(HubPath("org/name")), "a.jsonl", "jsonl")
    hub.cut = 1
    assert len(list(read_rows(FileRange(file)))) == 1000
    assert hub.cut == 0


def test_a_hub_that_is_not_there_is_told_at_once(hub: Hub) -> None:
    hub.stop()
    hub._server.server_close()
    line = line_of("org/name")
    assert f"the Hub at {hub.endpoint} does not give hf://datasets/org/name (ConnectError)" in line


def test_what_the_library_says_of_signed_addresses_is_not_repeated(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_client, "PATIENCE_S", 0)
    repo = hub.repo("org/name", {"a.parquet": b"PAR1" * 9})
    fs, path = open_filesystem(str(pin(HubPath("org/name", inner="a.parquet"))))
    stream = fs.open_input_file(path)
    repo.gated = True  # from now on
    with pytest.raises(UserError) as raised:
        stream.read()
    assert "is gated" in str(raised.value)
    assert "Signature" not in str(raised.value)


def test_offline_a_dataset_is_read_from_the_cache(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repo("org/name", {"data/a.jsonl": rows(3), "README.md": b"---\nlicense: mit\n---\n"})
    hub.repo("org/other", {"a.jsonl": rows(1)})
    online = file_of(pin(HubPath("org/name")), "data/a.jsonl", "jsonl")
    folder = snapshot_download("org/name", repo_type="dataset")
    hub.stop()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    place = pin(HubPath("org/name"))
    # The same path and size, so the same pool.
    assert file_of(place, "data/a.jsonl", "jsonl") == online
    assert read_contents(place).card["license"] == "mit"
    assert len(list(read_rows(FileRange(online)))) == 3
    line = line_of("org/other")
    assert "HF_HUB_OFFLINE is set, and hf://datasets/org/other is not" in line
    assert "hf download org/other --repo-type dataset" in line
    Path(folder, "data/a.jsonl").unlink()
    with pytest.raises(UserError, match="not whole in this machine's cache"):
        pin(HubPath("org/name"))


def test_offline_a_missing_shard_is_noticed_where_no_listing_was_kept(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repo("org/name", {f"data/train-{n:05}-of-00002.jsonl": rows(3) for n in range(2)})
    folder = snapshot_download("org/name", repo_type="dataset", allow_patterns="*-00001-of*")
    # As by versions of the library that keep none, and after the download of single files.
    shutil.rmtree(Path(folder).parents[1] / "trees")
    monkeypatch.setattr("huggingface_hub._tree_cache._IN_MEMORY_TREE_CACHE", {})
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="not whole in this machine's cache"):
        read_contents(pin(HubPath("org/name")))
