"""Which texts of a benchmark's files are looked for, and what is said of files that have none."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from instructdiff_ray.config.clean import CleanConfig
from instructdiff_ray.errors import UserError
from instructdiff_ray.pool.benchmarks import load_benchmarks, pin_benchmarks
from instructdiff_ray.pool.contamination import Benchmarks
from instructdiff_ray.sample import Part
from tests.hub import serving

QUESTION = "How many of the nine planets that we were taught of at school are left?"
ANSWER = "Eight of them are left, for Pluto is no planet any more since 2006."


def load(*paths: Path | str, **settings: Any) -> Benchmarks:
    benchmarks = load_benchmarks(CleanConfig(benchmarks=[str(p) for p in paths], **settings))
    assert benchmarks is not None
    return benchmarks


def contains(benchmarks: Benchmarks, question: str, answer: str = "No.") -> bool:
    (reject,) = benchmarks.check([[Part("instruction", question), Part("response", answer)]])
    return reject is not None


def write_rows(path: Path, *rows: Any) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def test_all_text_of_a_row_counts_whatever_the_format(tmp_path: Path) -> None:
    row = {"id": 7, "question": QUESTION, "choices": {"text": ["No", ANSWER], "label": ["A", "B"]}}
    lines = write_rows(tmp_path / "a.jsonl", row)
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "b.parquet")
    (tmp_path / "c.json").write_text(json.dumps([row]))
    (tmp_path / "d.txt.gz").write_bytes(gzip.compress(f"{QUESTION}\n\n{ANSWER}\n".encode()))
    digests = set()
    for path in (lines, tmp_path / "b.parquet", tmp_path / "c.json"):
        benchmarks = load(path)
        assert contains(benchmarks, QUESTION) and contains(benchmarks, "Why?", ANSWER)
        digests.add(benchmarks.digest)
    assert len(digests) == 1
    text = load(tmp_path / "d.txt.gz")
    assert [line for _, line in text.places] == [1, 3]
    assert contains(text, QUESTION) and contains(text, "Why?", ANSWER)
    assert len(load(tmp_path).places) == 6  # of a folder the data files
    assert load_benchmarks(CleanConfig()) is None


def test_few_words_count_where_they_ask(tmp_path: Path) -> None:
    known = write_rows(tmp_path / "a.jsonl", {"question": "Factor x^2-1", "answer": "Two factors"})
    other = write_rows(
        tmp_path / "b.jsonl", {"problem": "Factor x^2-1", "solution": "Two factors", "level": 2}
    )
    chat = [
        {"role": "user", "content": "Factor x^2-1"},
        {"role": "assistant", "content": "Two factors"},
    ]
    turns = write_rows(tmp_path / "c.jsonl", {"messages": chat})
    for path in (known, other, turns):
        assert contains(load(path), "factor x^2 - 1!")
        assert not contains(load(path), "Two factors")


def test_of_a_dataset_of_the_hub_the_test_split_is_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [json.dumps({"question": text, "answer": "B"}).encode() for text in (QUESTION, ANSWER)]
    said: list[str] = []
    with serving(str(tmp_path / "home")) as hub:
        hub.repo("org/name", {"train.jsonl": rows[1], "test.jsonl": rows[0]})
        commit = hub.repo("org/plain", {"data/train.jsonl": rows[0]}).refs["main"]
        clean = pin_benchmarks(CleanConfig(benchmarks=["org/name"]), said.append)
        (path,) = clean.benchmarks
        assert said == [f"clean.benchmarks=org/name is read as {path}"]
        benchmarks = load(path)
        assert contains(benchmarks, QUESTION) and not contains(benchmarks, ANSWER)
        named = load(f"hf://datasets/org/plain@{commit}/data/*.jsonl")
        assert contains(named, QUESTION)
        with pytest.raises(UserError, match=r"has no split test.*name the files that you mean"):
            load(f"hf://datasets/org/plain@{commit}")
        entries = (f"- config_name: {n}\n  data_files: {n}/*\n" for n in ("main", "socratic"))
        card = f"---\nconfigs:\n{''.join(entries)}---\n"
        files = {f"{name}/test.jsonl": rows[0] for name in ("main", "socratic")}
        several = hub.repo("org/several", {"README.md": card.encode(), **files}).refs["main"]
        with pytest.raises(
            UserError, match=r"several subsets: main, socratic; name the f"
        ) as error:
            load(f"hf://datasets/org/several@{several}")
        assert "data." not in str(error.value)
        with pytest.raises(UserError, match=r"^clean.benchmarks=org/none is no file or folder"):
            pin_benchmarks(CleanConfig(benchmarks=["org/none"]), said.append)


def test_a_file_that_gives_nothing_to_look_for_is_refused_in_a_line(tmp_path: Path) -> None:
    good = write_rows(tmp_path / "good.jsonl", {"question": QUESTION, "answer": ANSWER})
    answers = write_rows(tmp_path / "answers.jsonl", {"answer": "B"}, {"answer": "A"})
    broken = tmp_path / "broken.jsonl"
    broken.write_text("{}\n{'a': 1}\n")
    empty = tmp_path / "empty.txt"
    empty.write_text("\n\n")
    latin = tmp_path / "latin.txt"
    latin.write_bytes(b"caf\xe9\n")
    for paths, line in (
        ((good, answers), rf"^clean.benchmarks: {answers} holds no text of two words"),
        ((good, empty), rf"^clean.benchmarks: {empty} holds no text"),
        ((broken,), rf"^clean.benchmarks: {broken} line 2 is no JSON \("),
        ((latin,), rf"^clean.benchmarks: {latin} line 1 can't be read \(invalid_utf8"),
        ((tmp_path / "none.jsonl",), r"^clean.benchmarks=\S+none.jsonl does not exist"),
        ((tmp_path / "none.txt",), r"^clean.benchmarks=\S+none.txt does not exist"),
        ((tmp_path / "*.xyz",), r"^clean.benchmarks=\S+ matches no file"),
    ):
        with pytest.raises(UserError, match=line) as error:
            load(*paths)
        assert "\n" not in str(error.value)
