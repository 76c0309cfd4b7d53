"""Datasets of the Hub as `data.path`: which files are read, of which commit, under which key."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from instructdiff_ray.config.data import DataConfig
from instructdiff_ray.config.run import Config
from instructdiff_ray.context import check_settings, list_data
from instructdiff_ray.errors import UserError
from instructdiff_ray.models.model import Model
from instructdiff_ray.pool.hub_data import pin_paths
from instructdiff_ray.pool.ingest import pool_artifact
from instructdiff_ray.pool.readers import read_rows
from instructdiff_ray.pool.source import FileRange, SourceFile
from instructdiff_ray.storage.artifacts import Storage
from instructdiff_ray.storage.hub_client import HubPath
from tests.hub import CONVERTED, Hub, serving


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.chdir(tmp_path)
    with serving(str(tmp_path / "home")) as server:
        yield server


def rows(count: int) -> bytes:
    return b"".join(b'{"question": "%d", "answer": "%d"}\n' % (n, n) for n in range(count))


def parquet(count: int) -> bytes:
    sink = io.BytesIO()
    numbers = [str(n) for n in range(count)]
    pq.write_table(pa.table({"question": numbers, "answer": numbers}), sink)
    return sink.getvalue()


def pinned(path: object, **settings: object) -> DataConfig:
    return pin_paths(DataConfig(path=path, **settings), lambda line: None)  # type: ignore[arg-type]


def names(path: object, **settings: object) -> list[str]:
    return [HubPath.parse(f.path).inner for f in list_data(pinned(path, **settings))]


def line_of(path: object, **settings: object) -> str:
    with pytest.raises(UserError) as raised:
        list_data(pinned(path, **settings))
    assert "\n" not in str(raised.value)
    return str(raised.value)


def count(files: list[SourceFile]) -> int:
    return sum(row.reason is None for file in files for row in read_rows(FileRange(file)))


def test_a_dataset_is_named_as_datasets_does_or_by_its_uri(hub: Hub) -> None:
    commit = hub.repo("org/name", {"data/train.jsonl": rows(3), "README.md": b"# x"}).refs["main"]
    said: list[str] = []
    for path in ("org/name", "org/name@main", "hf://datasets/org/name"):
        data = pin_paths(DataConfig(path=path), said.append)
        assert data.path == f"hf://datasets/org/name@{commit}"
        assert said.pop() == f"data.path={path} is read as {data.path}"
        (file,) = list_data(data)
        assert file == SourceFile(f"{data.path}/data/train.jsonl", "jsonl", len(rows(3)), 0)
        assert count([file]) == 3
    assert pin_paths(data, said.append) == data
    assert not said


def test_paths_by_domain_and_in_lists_are_pinned_where_they_are(hub: Hub, tmp_path: Path) -> None:
    commit = hub.repo("org/name", {"a.jsonl": rows(1)}).refs["main"]
    (tmp_path / "b.jsonl").write_bytes(rows(2))
    data = pinned({"math": "org/name", "code": ["b.jsonl", "hf://datasets/org/name/a.jsonl"]})
    place = f"hf://datasets/org/name@{commit}"
    assert data.path == {"math": place, "code": ["b.jsonl", f"{place}/a.jsonl"]}
    assert "in the domains math and code" in line_of(data.path)


def test_a_local_path_of_that_name_wins(hub: Hub, tmp_path: Path) -> None:
    hub.repo("org/name", {"a.jsonl": rows(1)})
    (tmp_path / "org/name").mkdir(parents=True)
    (tmp_path / "org/name/b.jsonl").write_bytes(rows(2))
    (file,) = list_data(pinned("org/name"))
    assert file.path == str(tmp_path / "org/name/b.jsonl")
    assert not hub.asked


@pytest.mark.parametrize(
    "path", ["data/math.jsonl", "math", "./org/name", "a/b/c", "org/na*", "org/x.json.gz", "~/x"]
)
def test_what_looks_like_a_path_is_no_name_of_a_dataset(hub: Hub, path: str) -> None:
    line = line_of(path)
    absolute = os.path.abspath(os.path.expanduser(path))
    assert line in (f"data.path={absolute} does not exist", f"data.path={path} matches no file")
    assert not hub.asked


def test_a_plain_name_that_names_nothing_says_how_it_was_taken(hub: Hub, tmp_path: Path) -> None:
    line = line_of("data/math")
    assert line.startswith(
        f"data.path=data/math is no file or folder here ({tmp_path}/data/math), and so, as it"
        " reads org/name, is taken for a dataset of the Hub: the Hub has no dataset data/math, or"
    )


def test_files_folders_and_globs_are_read_as_they_are(hub: Hub) -> None:
    files = ["a/1.jsonl", "a/2.parquet", "a/test/3.csv", "a/notes.txt", "a/_x/4.csv", "b/[1].json"]
    hub.repo("org/name", dict.fromkeys(files, b"x"))
    place = "hf://datasets/org/name"
    assert names(f"{place}/a") == names(f"{place}@main/a/") == files[:3]
    assert names(f"{place}/a/*.jsonl") == files[:1]
    assert names(f"{place}/**/[23].*") == files[1:3]
    assert names(f"{place}/b/[1].json") == files[5:]
    assert names(f"{place}/a/notes.txt", format="jsonl") == ["a/notes.txt"]
    assert "unknown format .txt" in line_of(f"{place}/a/notes.txt")
    assert "c does not exist" in line_of(f"{place}/c")
    assert "holds no .jsonl" in line_of(f"{place}/c/*.jsonl")
    assert "leave out one of them" in line_of(f"{place}/a", split="train")
    assert "data.format=csv is of named files" in line_of("org/name", format="csv")


CARD = b"""---
configs:
- config_name: main
  data_files:
  - split: train
    path: main/train-*
  - split: test
    path: main/test-*
- config_name: socratic
  data_files: socratic/*
---
# GSM8K
"""


def test_subsets_and_splits_are_those_of_the_card(hub: Hub) -> None:
    files = [f"main/{s}-00000-of-00001.parquet" for s in ("test", "train")]
    files.append("socratic/0.parquet")
    hub.repo("org/name", {"README.md": CARD, **dict.fromkeys(files, parquet(1))})
    assert "has several subsets: main, socratic" in line_of("org/name")
    assert names("org/name", subset="main") == files[1:2]
    assert names("org/name", subset="main", split="test") == files[:1]
    assert names("org/name", subset="socratic") == files[2:]
    assert "has no split dev; it has train, test" in line_of("org/name", subset="main", split="dev")


def test_a_card_that_is_no_yaml_is_told(hub: Hub) -> None:
    hub.repo("org/name", {"README.md": b"---\nconfigs: [\n---\n", "a.jsonl": rows(1)})
    line = line_of("org/name")
    assert "README.md can't be read" in line
    assert "name the files of the dataset" in line


@pytest.mark.parametrize("source", [{"a.zip": b"PK"}, {"name.py": b"", "a.jsonl": rows(9)}])
def test_what_is_in_no_format_of_ours_is_read_as_the_hub_has_converted_it(
    hub: Hub, source: dict[str, bytes]
) -> None:
    repo = hub.repo("org/name", {"dataset_infos.json": b"{}", **source})
    assert "the Hub has not converted it to Parquet" in line_of("org/name")
    files = {"main/train/0000.parquet": parquet(4), "main/test/0000.parquet": parquet(2)}
    commit = repo.push(files, CONVERTED)
    data = pinned("org/name")
    assert data.path == f"hf://datasets/org/name@{commit}"
    assert count(list_data(data)) == 4
    assert count(list_data(pinned("org/name", split="test"))) == 2
    assert count(list_data(pinned(f"hf://datasets/org/name@{CONVERTED}"))) == 4
    repo.refs["v1"] = repo.refs["main"]
    assert "converts only the main branch" in line_of("org/name@v1")


def key(data: DataConfig, model: Model) -> str:
    config = Config(data=data)
    return pool_artifact(config, list_data(data), model, Storage("/nowhere"))[0].key


def test_a_branch_that_moves_is_another_pool_and_not_for_who_reads_already(
    hub: Hub, model: Model
) -> None:
    repo = hub.repo("org/name", {"a.jsonl": rows(3)})
    data = pinned("org/name")
    before = key(data, model)
    repo.push({"a.jsonl": rows(3), "b.jsonl": rows(4)})
    assert key(data, model) == before
    assert count(list_data(data)) == 3
    after = pinned("org/name")
    assert key(after, model) != before
    assert count(list_data(after)) == 7
    # What names a part of the dataset is in the key by the files that it names.
    assert key(pinned("org/name", split="train"), model) == key(after, model)


def test_fifty_files_are_named_with_a_few_requests(hub: Hub) -> None:
    files = {f"data/train-{n:05}-of-00050.jsonl": rows(2) for n in range(50)}
    hub.repo("org/name", {"README.md": CARD.replace(b"main/", b"data/"), **files})
    data = pinned("org/name", subset="main")
    for _ in range(2):  # before Ray starts, and when the pool is made
        assert len(list_data(data)) == 50
    assert hub.asked == {"api": 2, "head": 1, "get": 1}


def test_nothing_is_written_to_the_hub() -> None:
    for place in ("storage", "run_dir"):
        with pytest.raises(UserError, match="nothing is written to the Hub"):
            check_settings(Config(**{place: "hf://datasets/org/name"}))  # type: ignore[arg-type]
