"""Ingest on Ray: nothing is lost, nothing is read twice, and the pool is its content alone."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from instructdiff_ray.config.clean import CleanConfig
from instructdiff_ray.config.data import DataConfig
from instructdiff_ray.config.run import Config
from instructdiff_ray.config.training import CalibrateConfig
from instructdiff_ray.demo.pool import pool_lines
from instructdiff_ray.errors import UserError
from instructdiff_ray.models.model import Model
from instructdiff_ray.pool import chunks
from instructdiff_ray.pool.chunks import BYTES_PER_READER, ROWS_PER_CHUNK, reader_groups
from instructdiff_ray.pool.files import source_files
from instructdiff_ray.pool.ingest import (
    ingest,
    pool_artifact,
)
from instructdiff_ray.pool.pool import Pool
from instructdiff_ray.pool.readers import read_rows
from instructdiff_ray.pool.schemas import parse_row
from instructdiff_ray.pool.source import FileRange, SourceFile
from instructdiff_ray.pool.warmup import draw_subset
from instructdiff_ray.progress import Progress
from instructdiff_ray.sample import sample_id
from instructdiff_ray.storage.artifacts import Storage
from tests.pools import rejects, samples

pytestmark = pytest.mark.usefixtures("ray_session")

Ingest = Callable[..., Pool]
Row = dict[str, Any]


@pytest.fixture
def run(model: Model, tmp_path: Path) -> Ingest:
    """Ingest with these settings of `data`, into one storage a test."""

    def run(
        path: Any,
        calibrate: dict[str, Any] | None = None,
        clean: dict[str, Any] | None = None,
        **data: Any,
    ) -> Pool:
        path = [str(p) for p in path] if isinstance(path, list) else str(path)
        config = Config(
            data=DataConfig(path=path, **data),
            clean=CleanConfig(**clean or {}),
            calibrate=CalibrateConfig(**calibrate or {}),
        )
        log = io.StringIO()
        return ingest(
            config,
            source_files(config.data),
            model,
            Storage(str(tmp_path / "store")),
            Progress(log),
        )

    return run


def row(number: int) -> Row:
    return {"instruction": f"Say {number}.", "output": f"It is {number}, of course."}


def write(path: Path, rows: Sequence[Row | bytes]) -> Path:
    """JSON Lines of rows, or of lines as they are."""
    lines = [r if isinstance(r, bytes) else json.dumps(r).encode() for r in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def places(rows: list[Row]) -> list[tuple[str, int]]:
    return [(Path(row["file"]).name, row["line"]) for row in rows]


def check(pool: Pool) -> Pool:
    """What holds for every pool: the sums, the index and the files' agreement with both."""
    kept, dropped, counts = samples(pool), rejects(pool), pool.counts
    assert counts["read"] == len(kept) + len(dropped)
    assert counts["pool"] == len(kept) == len(pool)
    assert sum(counts["rejected"].values()) == len(dropped)
    for reason, count in counts["rejected"].items():
        assert count == sum(row["reason"] == reason for row in dropped)
    assert counts["truncated"] == sum(row["truncated"] for row in kept)
    assert len(set(places(kept) + places(dropped))) == counts["read"]
    index = pa.concat_tables(pool.index()).to_pylist()
    ids = [row["sample_id"] for row in index]
    assert ids == sorted(set(ids))
    by_id = {row["sample_id"]: row for row in kept}
    assert len(by_id) == len(kept)
    assert index == [{name: by_id[i][name] for name in index[0]} for i in ids]
    assert all(0 < row["response_tokens"] <= row["tokens"] for row in kept)
    return pool


def test_everything_read_is_in_the_pool_or_among_the_rejects(run: Ingest, tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]
    lines: list[Row | bytes] = [
        row(1),
        b'{"instruction": "a", "outp',
        {"instruction": "a", "output": None},
        b"",
        {"messages": chat, "domain": "chat"},
        b'{"instruction": "\xff", "output": "b"}',
        {"instruction": "a", "output": [["b"]]},
        {"instruction": "a", "output": " "},
        {"instruction": "a", "output": "\ud800"},
        {"headline": "a", "story": "b"},
        row(2),
        b"[" * 100_000,
        row(1),
    ]
    write(folder / "a.jsonl", lines)
    (folder / "b.csv").write_bytes(b"question,answer\nWhy?,Because.\nWhy?\nWho?,\xff\n")
    (folder / "c.jsonl.gz").write_bytes(gzip.compress(json.dumps(row(3)).encode() * 99)[:-4])
    (folder / "d.parquet").write_bytes(b"PAR1 no parquet PAR1")
    (folder / "e.json").write_bytes(b'[{"prompt": "p", "completion": "c"},\n{"prompt": "p"},\n{')
    (folder / "empty.jsonl").write_bytes(b"")
    pool = check(run(folder))
    expected = [("a.jsonl", 1), ("a.jsonl", 5), ("a.jsonl", 11), ("b.csv", 2), ("e.json", 1)]
    assert places(samples(pool)) == expected
    dropped = rejects(pool)
    found = [(*place, row["reason"]) for place, row in zip(places(dropped), dropped, strict=True)]
    assert sorted(found) == [
        ("a.jsonl", 2, "invalid_json"),
        ("a.jsonl", 3, "not_a_string"),
        ("a.jsonl", 6, "invalid_utf8"),
        ("a.jsonl", 7, "not_a_string"),
        ("a.jsonl", 8, "empty_response"),
        ("a.jsonl", 9, "invalid_unicode"),
        ("a.jsonl", 10, "unknown_schema"),
        ("a.jsonl", 12, "invalid_json"),
        ("a.jsonl", 13, "duplicate"),
        ("b.csv", 3, "invalid_csv"),
        ("b.csv", 4, "invalid_unicode"),
        ("c.jsonl.gz", 1, "unreadable_file"),
        ("d.parquet", 1, "unreadable_file"),
        ("e.json", 2, "unknown_schema"),
        ("e.json", 3, "invalid_json"),
    ]
    assert all(row["detail"] for row in dropped)
    assert all(len(row["source"]) <= 10_000 for row in dropped)
    by_line = {row["line"]: row for row in dropped if row["file"].endswith("a.jsonl")}
    assert by_line[2]["source"] == '{"instruction": "a", "outp'
    first = samples(pool)[0]
    assert first["sample_id"] in by_line[13]["detail"]


def test_each_line_of_the_demos_pool_meets_the_fate_it_was_made_for(
    run: Ingest, tmp_path: Path
) -> None:
    lines = pool_lines(seed=4, size=3000)
    pool = check(run(write(tmp_path / "a.jsonl", [line for _, line in lines])))
    reasons = {
        "broken JSON": "invalid_json",
        "null response": "not_a_string",
        "nested response": "not_a_string",
        "empty response": "empty_response",
        "unknown schema": "unknown_schema",
        "array": "not_an_object",
        "invalid UTF-8": "invalid_utf8",
    }
    expected: dict[int, str | None] = {}
    seen: set[str] = set()
    for number, (kind, line) in enumerate(lines, 1):
        expected[number] = reasons.get(kind)
        if kind not in reasons:
            name = sample_id(parse_row(line.decode())[1])
            expected[number] = "duplicate" if name in seen else None
            seen.add(name)
    found: dict[int, str | None] = {row["line"]: None for row in samples(pool)}
    found |= {row["line"]: row["reason"] for row in rejects(pool)}
    assert found == expected
    assert set(pool.counts["rejected"]) == {*reasons.values(), "duplicate"}


def test_a_source_row_is_kept_to_the_letter(run: Ingest, tmp_path: Path) -> None:
    lines = [
        b'{"output":"b",   "instruction" : "a\\u00e9", "score": 1.50, "id": 12345678901234567890}',
        '  {"instruction": "é\u2028", "output": "ö", "instruction": "z"}\t\r'.encode(),
    ]
    pool = check(run(write(tmp_path / "a.jsonl", lines)))
    assert [row["source"].encode() for row in samples(pool)] == [line.strip() for line in lines]
    assert samples(pool)[0]["parts"] == [
        {"kind": "instruction", "text": "aé"},
        {"kind": "response", "text": "b"},
    ]


def test_of_equal_samples_the_first_in_source_order_is_kept(run: Ingest, tmp_path: Path) -> None:
    same = [{"question": r["instruction"], "answer": r["output"]} for r in (row(1), row(2))]
    z = write(tmp_path / "z.jsonl", [row(1), row(3), {**row(1), "input": " ", "n": 1}])
    a = write(tmp_path / "a.jsonl", [row(2), *same, row(3), row(4)])
    pool = check(run([z, a]))
    assert places(samples(pool)) == [("z.jsonl", 1), ("z.jsonl", 2), ("a.jsonl", 1), ("a.jsonl", 5)]
    assert pool.counts["rejected"] == {"duplicate": 4}
    assert sorted(places(rejects(pool))) == [
        ("a.jsonl", 2),
        ("a.jsonl", 3),
        ("a.jsonl", 4),
        ("z.jsonl", 3),
    ]
    dropped = next(row for row in rejects(pool) if row["line"] == 2)
    assert json.loads(dropped["source"]) == same[0]

    every = check(run([z, a], keep_duplicates=True))
    assert every.counts == {"read": 8, "rejected": {}, "pool": 8, "truncated": 0}
    ids = [row["sample_id"] for row in samples(every)]
    originals = [row["sample_id"] for row in samples(pool)]
    assert ids[:3] == [originals[0], originals[1], f"{originals[0]}-1"]
    assert ids[3:] == [
        originals[2],
        f"{originals[0]}-2",
        f"{originals[2]}-1",
        f"{originals[1]}-1",
        originals[3],
    ]
    assert [json.loads(r["source"]) for r in samples(every)][3:6] == [row(2), *same]
    assert every.digest != pool.digest


def test_source_order_is_that_of_the_files_and_not_of_who_is_read_first(
    run: Ingest, tmp_path: Path
) -> None:
    # Blank lines take their time and give no row.
    slow = write(tmp_path / "a.jsonl", [b"\n" * 3_000_000, row(1), row(2)])
    quick = [write(tmp_path / f"{n}.jsonl", [row(1), row(2), row(n)]) for n in (7, 8, 9)]
    pool = check(run([slow, *quick]))
    assert places(samples(pool)) == [
        ("a.jsonl", 3_000_002),
        ("a.jsonl", 3_000_003),
        ("7.jsonl", 3),
        ("8.jsonl", 3),
        ("9.jsonl", 3),
    ]


def test_the_pool_and_its_warmup_are_those_of_the_content_alone(
    run: Ingest, tmp_path: Path
) -> None:
    rows = [row(n) for n in range(60)] + [row(n) for n in (7, 8, 7)]
    shuffled = random.Random(1).sample(rows, len(rows))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    for name in ("csv", "array", "columns"):
        (tmp_path / name).mkdir()
    (tmp_path / "csv" / "pool.csv").write_text(text.getvalue(), encoding="utf-8", newline="")
    (tmp_path / "array" / "pool.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "columns" / "pool.parquet")
    write(tmp_path / "split" / "b.jsonl", rows[:20])
    write(tmp_path / "split" / "a.jsonl", rows[20:])
    variants: dict[str, Any] = {
        "original": write(tmp_path / "one" / "pool.jsonl", rows),
        "renamed": write(tmp_path / "two" / "other.jsonl", rows),
        "reordered": write(tmp_path / "three" / "pool.jsonl", shuffled),
        "split in two": tmp_path / "split",
        "csv": tmp_path / "csv",
        "json": tmp_path / "array",
        "parquet": tmp_path / "columns",
    }
    pools = {name: check(run(path)) for name, path in variants.items()}
    indexes = {name: list(pool.ids()) for name, pool in pools.items()}
    assert len(indexes["original"]) == 60
    assert len({pool.key for pool in pools.values()}) == len(pools)
    for name, pool in pools.items():
        assert pool.digest == pools["original"].digest, name
        assert indexes[name] == indexes["original"], name
        drawn = draw_subset(pool, pool.domains(), 0.1, seed=3)
        assert drawn == draw_subset(pools["original"], pools["original"].domains(), 0.1, seed=3)
    other = run(write(tmp_path / "four" / "pool.jsonl", [*rows, row(60)]))
    assert other.digest != pools["original"].digest


def test_a_limit_takes_exactly_the_first_rows_in_file_order(run: Ingest, tmp_path: Path) -> None:
    one = write(tmp_path / "z.jsonl", [row(1), b"", b"broken", row(2)])
    two = write(tmp_path / "a.jsonl", [row(3), row(1), row(4)])
    three = write(tmp_path / "m.jsonl", [row(5)] * 3000)
    pool = check(run([one, two, three], limit=5))
    assert places(samples(pool)) == [("z.jsonl", 1), ("z.jsonl", 4), ("a.jsonl", 1)]
    assert sorted(places(rejects(pool))) == [("a.jsonl", 2), ("z.jsonl", 3)]
    assert check(run([three, one], limit=3001)).counts["read"] == 3001
    assert check(run([one, two], limit=1000)).counts["read"] == 6


def test_a_pool_of_several_parts_keeps_order_and_drops_duplicates_across_them(
    run: Ingest, tmp_path: Path
) -> None:
    # Each half holds copies of rows of the other, so equal samples lie in different parts.
    numbers = [*range(5000), *range(4000, 9000)]
    one = write(tmp_path / "b.jsonl", [row(n) for n in numbers[:6000]])
    two = write(tmp_path / "a.jsonl", [row(n) for n in numbers[6000:]])
    pool = check(run([one, two]))
    assert pool.counts["rejected"] == {"duplicate": 1000}
    assert pool.counts["read"] == 10_000
    assert len(pool.parts) >= 10_000 // ROWS_PER_CHUNK
    assert all(pool.folder.read_table(name).num_rows <= ROWS_PER_CHUNK for name in pool.parts)
    kept = [("b.jsonl", n + 1) for n in range(5000)] + [("a.jsonl", n + 1) for n in range(4000)]
    assert places(samples(pool)) == kept
    assert places(rejects(pool)) == [("b.jsonl", n + 1) for n in range(5000, 6000)]
    assert [json.loads(r["source"]) for r in samples(pool)] == [row(n) for n in range(9000)]


def test_each_row_has_the_domain_of_its_column(run: Ingest, tmp_path: Path) -> None:
    topics: list[Any] = ["math", "code", "math", None, "", 7, "Bücher, Filme"]
    path = write(tmp_path / "a.jsonl", [{**row(n), "topic": t} for n, t in enumerate(topics)])
    pool = check(run(path, domain_column="topic"))
    assert [row["domain"] for row in samples(pool)] == ["math", "code", "math", "Bücher, Filme"]
    assert pool.counts["rejected"] == {"no_domain": 3}
    assert places(rejects(pool)) == [("a.jsonl", 4), ("a.jsonl", 5), ("a.jsonl", 6)]
    everything = check(run(path))
    assert {row["domain"] for row in samples(everything)} == {"general"}
    # Domains rank apart, so they are part of what the pool is.
    others = write(tmp_path / "b.jsonl", [{**row(n), "topic": "math"} for n in (0, 1, 2, 6)])
    same_rows = run(others, domain_column="topic")
    assert list(same_rows.ids()) == list(pool.ids())
    assert same_rows.digest != pool.digest


def test_columns_named_by_the_user_are_read(run: Ingest, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"q": "Why?", "a": "Because.", "output": "no"}, row(1)])
    pool = check(run(path, columns={"instruction": "q", "response": "a"}))
    assert samples(pool)[0]["parts"][1] == {"kind": "response", "text": "Because."}
    assert pool.counts["rejected"] == {"not_a_string": 1}


def test_what_is_too_long_is_a_reject_or_cut_off_and_counted(run: Ingest, tmp_path: Path) -> None:
    long_answer = {"instruction": "Count.", "output": "one two three " * 100}
    long_question = {"instruction": "one two three " * 100, "output": "Yes."}
    path = write(tmp_path / "a.jsonl", [row(1), long_answer, long_question])
    strict = check(run(path, {"max_length": 100}))
    assert strict.counts["rejected"] == {"too_long": 2}
    assert places(samples(strict)) == [("a.jsonl", 1)]
    assert "at most 100" in rejects(strict)[0]["detail"]
    cut = check(run(path, {"max_length": 100}, over_long="truncate"))
    assert cut.counts["truncated"] == 1
    # Of what begins after the cut, no response is left to learn or to score.
    assert cut.counts["rejected"] == {"no_response_tokens": 1}
    assert [(r["tokens"], r["truncated"]) for r in samples(cut)][1] == (100, True)
    assert samples(cut)[0]["tokens"] == samples(strict)[0]["tokens"] < 100


def test_a_finished_pool_is_reused_and_a_changed_file_is_noticed(
    run: Ingest, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.jsonl", [row(1), row(2)])
    store = tmp_path / "store"
    first = run(path)

    def files() -> dict[str, int]:
        return {str(p): p.stat().st_mtime_ns for p in store.rglob("*") if p.is_file()}

    before = files()
    assert run(path) == first
    assert run([path]) == first
    assert files() == before

    keys = {first.key}
    for setting in ({"limit": 1}, {"keep_duplicates": True}, {"calibrate": {"max_length": 50}}):
        keys.add(run(path, **setting).key)
    assert len(keys) == 4
    # Training settings that don't change the pool don't make it again.
    assert run(path, {"epochs": 9}) == first

    stat = path.stat()
    write(path, [row(1), row(3)])
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert path.stat().st_size == stat.st_size
    changed = run(path)
    assert changed.digest != first.digest
    assert [json.loads(r["source"]) for r in samples(changed)] == [row(1), row(3)]

    damaged = Path(first.folder.path) / first.parts[0]
    write(path, [row(1), row(2)])
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert run(path) == first
    damaged.unlink()
    again = check(run(path))
    assert (again.key, again.digest) == (first.key, first.digest)


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("empty.jsonl", b"", "holds no row"),
        ("blank.jsonl", b"\n\n", "holds no row"),
        ("empty.csv", b"instruction,output\n", "holds no row"),
        ("bad.jsonl", b'{\n{"a": 1}\n{', "no valid row.*invalid_json 2, unknown_schema 1"),
        ("bad.parquet", b"garbage", "no valid row.*unreadable_file 1"),
        ("missing.jsonl", None, "does not exist"),
        ("pool.xml", b"<a/>", "unknown format .xml"),
    ],
)
def test_a_source_without_a_valid_row_is_the_users_error_and_leaves_nothing(
    run: Ingest, tmp_path: Path, name: str, data: bytes | None, said: str
) -> None:
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=rf"data\.path=.*{name}.*{said}"):
        run(tmp_path / name)
    left = [path.name for path in (tmp_path / "store").rglob("*") if path.is_file()]
    assert set(left) <= {".lock"}


def test_a_file_that_changed_since_it_was_listed_stops_the_ingest(
    model: Model, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.jsonl", [row(n) for n in range(5)])
    config = Config(data=DataConfig(path=str(tmp_path / "a.jsonl")))
    files, storage = source_files(config.data), Storage(str(tmp_path / "store"))
    write(path, [row(n) for n in range(6)])  # while a lock was waited for, say
    with pytest.raises(UserError, match=r"a\.jsonl changed while the pool was read"):
        ingest(config, files, model, storage, Progress(io.StringIO()))
    assert not list((tmp_path / "store").rglob("*.parquet"))
    again = ingest(config, source_files(config.data), model, storage, Progress(io.StringIO()))
    assert len(again) == 6


def test_a_file_that_came_after_the_listing_is_in_neither_key_nor_pool(
    model: Model, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    write(tmp_path / "data/a.jsonl", [row(n) for n in range(5)])
    config = Config(data=DataConfig(path=str(tmp_path / "data")))
    files, storage = source_files(config.data), Storage(str(tmp_path / "store"))
    artifact, _ = pool_artifact(config, files, model, storage)
    write(tmp_path / "data/b.jsonl", [row(n) for n in range(5, 9)])
    pool = ingest(config, files, model, storage, Progress(io.StringIO()))
    assert (pool.key, len(pool)) == (artifact.key, 5)


def test_no_path_is_the_users_error(run: Ingest) -> None:
    with pytest.raises(UserError, match=r"data\.path is not set"):
        run([])


def test_progress_counts_the_rows_and_ends_at_all_of_them(model: Model, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [row(n) for n in range(300)])
    log = io.StringIO()
    config = Config(data=DataConfig(path=str(path)))
    progress = Progress(log, log_every_s=0)
    ingest(config, source_files(config.data), model, Storage(str(tmp_path / "store")), progress)
    lines = log.getvalue().splitlines()
    assert lines[0].split() == ["ingest", "started"]
    assert "300 rows (" in lines[1] and "%" in lines[1]
    assert lines[-1].startswith("ingest        300 rows in ")
    assert progress.seconds["ingest"] > 0


def test_small_files_share_a_reader_and_a_large_one_has_its_own() -> None:
    half = BYTES_PER_READER // 2
    sizes = [half, half, 1, 10 * BYTES_PER_READER, half, 0, half]
    files = [SourceFile(f"/{n}", "jsonl", size, 0) for n, size in enumerate(sizes)]
    found = list(reader_groups(files))
    assert [part.file for group in found for part in group] == files
    assert [[part.file.size for part in group] for group in found] == [
        [half, half],
        [1],
        [10 * BYTES_PER_READER],
        [half, 0, half],
    ]


def parts_of(store: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in store.rglob("part-*.parquet")}


def test_an_ingest_that_was_killed_parses_only_what_has_no_part(
    run: Ingest, tmp_path: Path
) -> None:
    # A file of several chunks, and three of one, of which no reader has two.
    big = write(tmp_path / "a.jsonl", [row(n) for n in range(3 * ROWS_PER_CHUNK - 5)])
    padding = b" " * (BYTES_PER_READER // 2)
    small = [
        write(tmp_path / f"{n}.jsonl", [row(n + 10**6), json.dumps(row(n)).encode() + padding])
        for n in range(4)
    ]
    files, store = [big, *small], tmp_path / "store"
    whole = check(run(files))
    names = sorted(path.name for path in parts_of(store))
    assert len(names) >= 3 + 2
    expected = samples(whole), rejects(whole), whole.digest, whole.counts
    (manifest,) = store.glob("pool/*/manifest.json")
    for seed in range(10):
        manifest.unlink()  # as if the driver had died before the end
        for path in store.rglob("*"):
            if path.is_file() and not path.name.startswith("part-"):
                path.unlink()
        before = parts_of(store)
        gone = random.Random(seed).sample(sorted(before), 1 + seed % 4)
        for path in gone:
            path.unlink()
        # As of a worker that was killed before the file had its name.
        other = next(path for path in before if path not in gone)
        other.with_name(f"{other.name}.{'0' * 32}.part").write_bytes(other.read_bytes())
        again = check(run(files))
        assert (samples(again), rejects(again), again.digest, again.counts) == expected
        after = parts_of(store)
        assert {path for path in after if after[path] != before[path]} == {*gone}


def test_readers_that_share_a_file_read_each_row_once_and_know_its_line(
    run: Ingest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [row(n) for n in range(500)]
    lines = [*map(json.dumps, rows[:250]), "", "  ", *map(json.dumps, rows[250:])]
    text = tmp_path / "a.jsonl"
    text.write_text("\ufeff" + "\n".join(lines))  # and no end of the last line
    columns = tmp_path / "b.parquet"
    pq.write_table(pa.Table.from_pylist(rows), columns, row_group_size=40)
    for path, places_of in (
        (text, [*range(1, 251), *range(253, 503)]),
        (columns, [*range(1, 501)]),
    ):
        file = source_files(DataConfig(path=str(path)))[0]
        expected = [(read.line, read.text) for read in read_rows(FileRange(file))]
        assert [line for line, _ in expected] == places_of
        for size in (60, 200, 1000, 4096, 10**6):  # a line has about 70 bytes
            monkeypatch.setattr(chunks, "BYTES_PER_RANGE", size)
            monkeypatch.setattr(chunks, "BYTES_PER_READER", 1)
            groups = chunks.with_lines([*reader_groups([file])])
            assert len(groups) == max(1, -(-file.size // size))
            read = [row for group in groups for part in group for row in read_rows(part)]
            assert [(row.line, row.text) for row in read] == expected


@pytest.mark.parametrize("keep_duplicates", [False, True])
def test_a_pool_of_many_partitions_is_that_of_one(
    keep_duplicates: bool, run: Ingest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = [n % 300 if n % 7 else n for n in range(800)]
    paths = [
        write(tmp_path / f"{name}.jsonl", [row(n) for n in numbers] + [b"broken"])
        for name in ("one", "many")
    ]
    one = check(run(paths[0], keep_duplicates=keep_duplicates))
    monkeypatch.setattr("instructdiff_ray.pool.partition.ROWS_PER_PARTITION", 50)
    many = check(run(paths[1], keep_duplicates=keep_duplicates))
    assert (one.partitions, many.partitions) == (1, 16)
    assert (many.digest, many.counts) == (one.digest, one.counts)
    assert pa.concat_tables(many.index()).equals(pa.concat_tables(one.index()))
    ids = [row["sample_id"] for row in samples(one)]
    assert [row["sample_id"] for row in samples(many)] == ids
    assert [row["line"] for row in rejects(many)] == [row["line"] for row in rejects(one)]


def test_lines_at_the_borders_of_ranges_are_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("instructdiff_ray.pool.readers.MAX_ROW_BYTES", 64)
    long = b"x" * 300
    lines = [b'{"n": 1}', long, b"", b'{"n": 2}\r', long + b"\r", b'{"n": 3}', b'{"n": 4}']
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join(lines))
    (file,) = source_files(DataConfig(path=str(path)))
    expected = [tuple(row) for row in read_rows(FileRange(file))]
    assert [row[0] for row in expected] == [1, 2, 4, 5, 6, 7]
    monkeypatch.setattr(chunks, "BYTES_PER_READER", 1)
    for size in range(1, file.size + 2, 3):
        monkeypatch.setattr(chunks, "BYTES_PER_RANGE", size)
        # Without Ray: a task for each border would take a minute.
        monkeypatch.setattr(chunks, "task", lambda function: function)
        monkeypatch.setattr(chunks, "results", list)
        sources = [
            source for group in chunks.with_lines([*reader_groups([file])]) for source in group
        ]
        assert [tuple(row) for source in sources for row in read_rows(source)] == expected


def test_what_can_not_be_divided_has_one_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "BYTES_PER_RANGE", 10)
    names = ["a.jsonl.gz", "a.csv", "a.json", "a.jsonl", "a.parquet"]
    formats = ["jsonl", "csv", "json", "jsonl", "parquet"]
    for name, format, readers in zip(names, formats, [1, 1, 1, 10, 10], strict=True):
        assert len([*reader_groups([SourceFile(f"/{name}", format, 100, 0)])]) == readers
