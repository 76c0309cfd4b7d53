"""Folders of `datasets.save_to_disk`, and Arrow files of other origin."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest

from instructdiff_ray.config.data import DataConfig
from instructdiff_ray.errors import UserError
from instructdiff_ray.pool.files import find_files, source_files
from instructdiff_ray.pool.readers import read_rows
from instructdiff_ray.pool.source import FileRange, RawRow, SourceFile
from instructdiff_ray.storage.filesystem import Folder


def table(start: int, count: int) -> pa.Table:
    rows = [{"question": f"{n} + 1?", "answer": str(n + 1)} for n in range(start, start + count)]
    return pa.Table.from_pylist(rows)


def stream(data: pa.Table, rows_per_batch: int = 1000) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, data.schema) as writer:
        writer.write_table(data, rows_per_batch)
    return sink.getvalue().to_pybytes()


def save(folder: str, shards: list[pa.Table]) -> None:
    """As `Dataset.save_to_disk` does, with a cache beside, as `Dataset.map` leaves it."""
    names = [f"data-{n:05}-of-{len(shards):05}.arrow" for n in range(len(shards))]
    for name, shard in zip(names, shards, strict=True):
        Folder(folder).write_bytes(name, stream(shard))
    state = {"_data_files": [{"filename": name} for name in names], "_split": "train"}
    Folder(folder).write_json("state.json", state)
    Folder(folder).write_json("dataset_info.json", {"features": {}, "splits": {}})
    Folder(folder).write_bytes("cache-0f1e2d3c.arrow", stream(table(900, 5)))


def questions(files: list[SourceFile]) -> list[str]:
    return [json.loads(row.text)["question"] for f in files for row in read_rows(FileRange(f))]


@pytest.fixture
def both(tmp_path: Path) -> str:
    folder = str(tmp_path / "both")
    save(f"{folder}/train", [table(0, 4), table(4, 3)])
    save(f"{folder}/test", [table(100, 2)])
    Folder(folder).write_json("dataset_dict.json", {"splits": ["train", "test"]})
    return folder


def test_a_saved_dataset_gives_the_rows_of_its_shards_and_of_nothing_beside_them(
    tmp_path: Path,
) -> None:
    save(str(tmp_path), [table(0, 4), table(4, 3)])
    files = find_files([str(tmp_path)])
    assert {file.format for file in files} == {"arrow"}
    assert questions(files) == [f"{n} + 1?" for n in range(7)]


def test_of_saved_splits_one_is_read(both: str) -> None:
    for split, expected in ((None, range(7)), ("train", range(7)), ("test", range(100, 102))):
        files = source_files(DataConfig(path=both, split=split))
        assert questions(files) == [f"{n} + 1?" for n in expected]
    with pytest.raises(UserError, match="has no split dev; it has test, train"):
        source_files(DataConfig(path=both, split="dev"))


def test_saved_splits_are_read_in_an_object_store(both: str, bucket: str) -> None:
    Folder(f"{bucket}/saved/a b").upload(both)
    files = source_files(DataConfig(path=f"{bucket}/saved/a b", split="test"))
    assert questions(files) == ["100 + 1?", "101 + 1?"]


def test_a_saved_dataset_that_lacks_a_shard_is_refused(tmp_path: Path) -> None:
    save(str(tmp_path), [table(0, 4), table(4, 3)])
    (tmp_path / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(UserError, match="data-00001-of-00002.arrow is missing; save it again"):
        find_files([str(tmp_path)])


def test_a_split_of_what_has_none_is_refused(tmp_path: Path) -> None:
    save(str(tmp_path), [table(0, 4)])
    for path in (tmp_path, tmp_path / "data-00000-of-00001.arrow"):
        with pytest.raises(UserError, match="data.split=train is of datasets of the Hub and"):
            source_files(DataConfig(path=str(path), split="train"))
    with pytest.raises(UserError, match="data.subset=main is of datasets of the Hub"):
        source_files(DataConfig(path=str(tmp_path), subset="main"))


def test_json_files_of_these_names_that_are_no_state_are_data(tmp_path: Path) -> None:
    names = ["dataset_info.json", "pool.arrow", "state.json"]
    for name in names:
        (tmp_path / name).write_bytes(b"[]")
    assert [Path(file.path).name for file in find_files([str(tmp_path)])] == names


def read(path: Path) -> list[RawRow]:
    return list(read_rows(FileRange(find_files([str(path)])[0])))


def test_an_ipc_file_is_read_as_a_stream_is(tmp_path: Path) -> None:
    data = table(0, 2500)
    (tmp_path / "stream.arrow").write_bytes(stream(data, 1700))
    with pa.ipc.new_file(str(tmp_path / "file.arrow"), data.schema) as writer:
        writer.write_table(data, 1700)
    rows = read(tmp_path / "file.arrow")
    assert rows == read(tmp_path / "stream.arrow")
    assert [row.line for row in rows] == list(range(1, 2501))
    assert [json.loads(row.text) for row in rows] == data.to_pylist()


def test_a_stream_that_is_cut_off_gives_the_batches_before_and_says_where(tmp_path: Path) -> None:
    whole = stream(table(0, 300), 100)
    (tmp_path / "a.arrow").write_bytes(whole[: len(whole) * 5 // 6])
    *rows, last = read(tmp_path / "a.arrow")
    assert len(rows) == 200
    assert (last.line, last.reason) == (201, "unreadable_file")
