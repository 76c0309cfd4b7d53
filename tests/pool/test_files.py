"""Which files a path names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from instructdiff_ray.errors import UserError
from instructdiff_ray.pool.files import find_files
from instructdiff_ray.pool.readers import read_rows
from instructdiff_ray.pool.source import FileRange


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


def names_of(folder: Path, paths: list[str], format: str | None = None) -> list[str]:
    return [str(Path(f.path).relative_to(folder)) for f in find_files(paths, format)]


def test_a_folder_gives_its_data_files_sorted_and_nothing_else(tmp_path: Path) -> None:
    data = ["a.csv", "b.jsonl.gz", "sub/a.parquet", "sub/deep/x.json", "z.tsv"]
    other = ["README.md", "_SUCCESS", ".hidden.jsonl", "_tmp/a.jsonl", ".git/a.json", "x.jsonl.bak"]
    touch(tmp_path, *reversed(data), *other)
    assert names_of(tmp_path, [str(tmp_path)]) == data
    assert names_of(tmp_path, [f"{tmp_path}/"]) == data
    assert [file.format for file in find_files([str(tmp_path)])] == [
        "csv",
        "jsonl",
        "parquet",
        "json",
        "csv",
    ]


def test_a_format_that_is_set_takes_every_visible_file_of_a_folder(tmp_path: Path) -> None:
    touch(tmp_path, "part-0", "part-1", "_SUCCESS")
    assert names_of(tmp_path, [str(tmp_path)], "jsonl") == ["part-0", "part-1"]


def test_a_glob_gives_the_files_it_matches_sorted(tmp_path: Path) -> None:
    touch(tmp_path, "b.jsonl", "a.jsonl", "c.csv", "sub/d.jsonl")
    assert names_of(tmp_path, [f"{tmp_path}/*.jsonl"]) == ["a.jsonl", "b.jsonl"]
    assert names_of(tmp_path, [f"{tmp_path}/**/*.jsonl"]) == ["a.jsonl", "b.jsonl", "sub/d.jsonl"]
    assert names_of(tmp_path, [f"{tmp_path}/s*"]) == ["sub/d.jsonl"]


def test_a_name_that_looks_like_a_glob_but_exists_is_that_file(tmp_path: Path) -> None:
    touch(tmp_path, "pool[1].jsonl", "pool1.jsonl")
    assert names_of(tmp_path, [f"{tmp_path}/pool[1].jsonl"]) == ["pool[1].jsonl"]


def test_a_list_keeps_its_order_and_names_each_file_once(tmp_path: Path) -> None:
    touch(tmp_path, "a.jsonl", "b.jsonl", "c.jsonl")
    paths = [f"{tmp_path}/c.jsonl", str(tmp_path), f"{tmp_path}/a.jsonl"]
    assert names_of(tmp_path, paths) == ["c.jsonl", "a.jsonl", "b.jsonl"]


def test_home_and_relative_paths_are_made_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "a.jsonl")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for path in ("a.jsonl", "./a.jsonl", "~/a.jsonl", "~/*.jsonl"):
        assert names_of(tmp_path, [path]) == ["a.jsonl"]


@pytest.mark.parametrize("name", ["a b.jsonl", "50%.jsonl", "a#b.jsonl", "ä.jsonl", "a?.jsonl"])
def test_files_of_any_name_are_found_and_read(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b'{"n": 1}')
    for path in (str(tmp_path), f"file://{tmp_path}"):
        (file,) = find_files([path])
        assert [json.loads(row.text) for row in read_rows(FileRange(file))] == [{"n": 1}]


def test_a_files_identity_is_its_path_size_and_time(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"12345")
    (file,) = find_files([str(path)])
    assert (file.path, file.size, file.mtime_ns) == (str(path), 5, path.stat().st_mtime_ns)
    assert (file.format, file.compressed) == ("jsonl", False)


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("missing.jsonl", r"data\.path=.*/missing\.jsonl does not exist"),
        ("*.none", r"data\.path=.*\*\.none matches no file"),
        ("readme.md", r"data\.path=.*/readme\.md: unknown format \.md.*\.jsonl.*data\.format"),
        ("noext", r"data\.path=.*/noext: unknown format \(no extension\)"),
        ("a.txt.gz", r"unknown format \.txt"),
        ("empty", r"data\.path=.*/empty is a folder without a \.jsonl.* file"),
    ],
)
def test_a_path_that_names_nothing_to_read_is_the_users_error(
    tmp_path: Path, path: str, line: str
) -> None:
    touch(tmp_path, "readme.md", "noext", "a.txt.gz", "empty/readme.md")
    with pytest.raises(UserError, match=line):
        find_files([f"{tmp_path}/{path}"])


def test_no_path_at_all_and_an_unknown_scheme_are_the_users_error() -> None:
    with pytest.raises(UserError, match=r"data\.path is not set"):
        find_files([])
    for unknown in ("xml", "JSON", ""):
        with pytest.raises(UserError, match=f"data.format={unknown} is not known; use one of"):
            find_files(["pool.jsonl"], unknown)
    with pytest.raises(UserError, match="htp://host/pool"):
        find_files(["htp://host/pool.jsonl"])
