"""Every row of every file, once, with its line; what can't be read costs its own row alone."""

from __future__ import annotations

import bz2
import csv
import datetime
import gzip
import io
import json
import random
import re
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from instructdiff_ray.errors import UserError
from instructdiff_ray.pool import readers
from instructdiff_ray.pool.files import find_files
from instructdiff_ray.pool.readers import read_rows
from instructdiff_ray.pool.schemas import parse_row
from instructdiff_ray.pool.source import FileRange, RawRow
from instructdiff_ray.sample import Reject

ROWS = [
    {"instruction": "Say hello.", "output": "Hello."},
    {"instruction": 'Quote "this", please', "output": "„Ja“ 日本 \U0001f600\u2028\x85\x1f"},
    {"instruction": "Two\nlines\r\nor\tthree", "output": "\\n is no newline"},
]
BOM = b"\xef\xbb\xbf"


def as_jsonl(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def as_json(rows: list[dict[str, Any]]) -> bytes:
    return json.dumps(rows, ensure_ascii=False).encode()


def as_pretty_json(rows: list[dict[str, Any]]) -> bytes:
    return json.dumps(rows, indent=2).encode()


def as_csv(rows: list[dict[str, Any]], delimiter: str = ",") -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def as_tsv(rows: list[dict[str, Any]]) -> bytes:
    return as_csv(rows, "\t")


def as_parquet(rows: list[dict[str, Any]] | pa.Table) -> bytes:
    sink = io.BytesIO()
    table = rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(rows)
    pq.write_table(table, sink)
    return sink.getvalue()


FORMATS: list[tuple[str, Callable[[list[dict[str, Any]]], bytes]]] = [
    ("pool.jsonl", as_jsonl),
    ("pool.ndjson", as_jsonl),
    ("pool.json", as_json),
    ("pretty.json", as_pretty_json),
    ("lines.json", as_jsonl),
    ("pool.csv", as_csv),
    ("pool.tsv", as_tsv),
    ("pool.parquet", as_parquet),
    ("POOL.JSONL", as_jsonl),
]


def arrow_compressed(codec: str) -> Callable[[bytes], bytes]:
    def compress(data: bytes) -> bytes:
        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, codec) as stream:
            stream.write(data)
        return bytes(sink.getvalue())

    return compress


COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".zst": arrow_compressed("zstd"),
    ".lz4": arrow_compressed("lz4"),
}


def read(path: Path, data: bytes, format: str | None = None) -> list[RawRow]:
    """The rows of a file of these bytes. Whatever they are, the pool can take them further."""
    path.write_bytes(data)
    rows = list(read_rows(FileRange(find_files([str(path)], format)[0])))
    for row in rows:
        pa.array([row.text, row.reason, row.detail], pa.large_string())
        assert (row.reason is None) == (row.detail is None)
        if row.reason is None:
            try:
                parse_row(row.text)
            except Reject as reject:
                pa.array([reject.reason, reject.detail], pa.large_string())
    lines = [row.line for row in rows]
    assert lines == sorted(lines)
    assert all(line >= 1 for line in lines)
    return rows


def good(rows: list[RawRow]) -> list[Any]:
    return [json.loads(row.text) for row in rows if row.reason is None]


def bad(rows: list[RawRow]) -> list[tuple[int, str | None]]:
    return [(row.line, row.reason) for row in rows if row.reason is not None]


# Formats


@pytest.mark.parametrize(("name", "write"), FORMATS)
def test_each_format_gives_the_same_rows(
    tmp_path: Path, name: str, write: Callable[[list[dict[str, Any]]], bytes]
) -> None:
    rows = read(tmp_path / name, write(ROWS))
    assert good(rows) == ROWS
    assert bad(rows) == []


@pytest.mark.parametrize("ending", [*COMPRESSIONS, ".GZ"])
@pytest.mark.parametrize(
    ("name", "write"), [("a.jsonl", as_jsonl), ("a.json", as_json), ("a.csv", as_csv)]
)
def test_each_compression_gives_the_same_rows(
    tmp_path: Path, ending: str, name: str, write: Callable[[list[dict[str, Any]]], bytes]
) -> None:
    data = COMPRESSIONS[ending.lower()](write(ROWS))
    rows = read(tmp_path / (name + ending), data)
    assert good(rows) == ROWS
    assert bad(rows) == []


@pytest.mark.parametrize("ending", [".gz", ".bz2", ".zst"])
def test_compressed_files_that_were_put_together_are_read_to_the_end(
    tmp_path: Path, ending: str
) -> None:
    pieces = [COMPRESSIONS[ending](as_jsonl([row])) for row in ROWS]
    assert good(read(tmp_path / f"a.jsonl{ending}", b"".join(pieces))) == ROWS


def test_a_format_that_is_set_goes_before_the_files_name(tmp_path: Path) -> None:
    assert good(read(tmp_path / "pool.txt", as_jsonl(ROWS), "jsonl")) == ROWS
    assert good(read(tmp_path / "pool.json", as_csv(ROWS), "csv")) == ROWS
    assert good(read(tmp_path / "pool", as_parquet(ROWS), "parquet")) == ROWS


def test_a_line_of_json_lines_is_kept_to_the_letter(tmp_path: Path) -> None:
    lines = [
        '{"output":"b",  "instruction" : "a\\u00e9\\/", "score": 1.0, "big": 1e400}',
        '{"a": 1, "a": 2}',
        "[1,  2]",
    ]
    rows = read(tmp_path / "a.jsonl", "\n".join(lines).encode())
    assert [row.text for row in rows] == lines


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
@pytest.mark.parametrize("start", [b"", BOM])
@pytest.mark.parametrize("last", [b"", b"\n"])
def test_line_ends_blank_lines_and_a_byte_order_mark_do_not_matter(
    tmp_path: Path, name: str, newline: bytes, start: bytes, last: bytes
) -> None:
    lines = [b'{"n": 1}', b"", b'  {"n": 2}\t', b" \t", b'{"n": 3}']
    rows = read(tmp_path / name, start + newline.join(lines) + last)
    assert [(row.line, row.text) for row in rows] == [
        (1, '{"n": 1}'),
        (3, '{"n": 2}'),
        (5, '{"n": 3}'),
    ]


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("start", [b"", BOM])
def test_a_csv_row_has_the_line_on_which_it_begins(
    tmp_path: Path, newline: str, start: bytes
) -> None:
    lines = ["", "instruction,output", 'one,"two', 'lines"', "", "last,row"]
    rows = read(tmp_path / "a.csv", start + newline.join(lines).encode())
    assert [row.line for row in rows] == [3, 6]
    assert good(rows) == [
        {"instruction": "one", "output": f"two{newline}lines"},
        {"instruction": "last", "output": "row"},
    ]


@pytest.mark.parametrize("start", [b"", BOM, b"\n \r\n", BOM + b"\n"])
def test_an_item_of_an_array_has_the_line_on_which_it_begins(tmp_path: Path, start: bytes) -> None:
    data = start + b'[{"n": 1}, {"n": 2},\n\n{"n":\n3}\r\n,{"n": 4}]\n'
    first = 1 + start.count(b"\n")
    rows = read(tmp_path / "a.json", data)
    assert good(rows) == [{"n": n} for n in (1, 2, 3, 4)]
    assert [row.line for row in rows] == [first, first, first + 2, first + 4]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.jsonl", b""),
        ("a.jsonl", b"\n \r\n"),
        ("a.jsonl", BOM),
        ("a.json", b""),
        ("a.json", b"[]"),
        ("a.json", b" [ ] \n"),
        ("a.csv", b""),
        ("a.csv", b"instruction,output\n"),
        ("a.jsonl.gz", gzip.compress(b"")),
        ("a.parquet", as_parquet(pa.table({"instruction": pa.array([], pa.string())}))),
    ],
)
def test_a_file_without_rows_has_none(tmp_path: Path, name: str, data: bytes) -> None:
    assert read(tmp_path / name, data) == []


def test_typed_and_nested_columns_of_parquet_become_json(tmp_path: Path) -> None:
    when = datetime.datetime(2024, 2, 29, 12, 30)
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": None}]
    table = pa.table(
        {
            "chat": [chat],
            "date": [when.date()],
            "time": [when],
            "nanoseconds": pa.array([1], pa.timestamp("ns")),
            "price": [Decimal("1.50")],
            "text as bytes": ["Größe".encode()],
            "bytes": [b"\xff\xfe"],
            "map": pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64())),
            "label": pa.array(["math"]).dictionary_encode(),
            "null": pa.nulls(1),
            "float": [0.5],
            "large": pa.array([2**64 - 1], pa.uint64()),
        }
    )
    rows = read(tmp_path / "a.parquet", as_parquet(table))
    assert good(rows) == [
        {
            "chat": chat,
            "date": "2024-02-29",
            "time": "2024-02-29 12:30:00",
            "nanoseconds": "1970-01-01 00:00:00.000000001",
            "price": "1.50",
            "text as bytes": "Größe",
            "bytes": "\udcff\udcfe",
            "map": [["k", 1]],
            "label": "math",
            "null": None,
            "float": 0.5,
            "large": 2**64 - 1,
        }
    ]


def test_rows_of_parquet_are_numbered_over_batches_and_row_groups(tmp_path: Path) -> None:
    sink = io.BytesIO()
    pq.write_table(pa.table({"n": range(3000)}), sink, row_group_size=700)
    rows = read(tmp_path / "a.parquet", sink.getvalue())
    assert [(row.line, json.loads(row.text)["n"]) for row in rows] == [
        (n + 1, n) for n in range(3000)
    ]


# Which files


def test_a_file_that_goes_away_stops_the_run_and_loses_no_rows_in_silence(tmp_path: Path) -> None:
    for name, data in (("a.jsonl", b"{}"), ("a.parquet", as_parquet(ROWS))):
        (tmp_path / name).write_bytes(data)
        (file,) = find_files([str(tmp_path / name)])
        (tmp_path / name).unlink()
        with pytest.raises(UserError, match=name):
            list(read_rows(FileRange(file)))


# Damage


def test_bytes_that_are_no_utf8_cost_their_line(tmp_path: Path) -> None:
    rows = read(tmp_path / "a.jsonl", b'{"n": 1}\n{"n": "\xff\xe9"}\n{"n": 3}\n')
    assert good(rows) == [{"n": 1}, {"n": 3}]
    assert bad(rows) == [(2, "invalid_utf8")]
    assert rows[1].text == '{"n": "\ufffd\ufffd"}'
    assert rows[1].detail is not None and "0xff" in rows[1].detail


@pytest.mark.parametrize("start", [b"", BOM])
@pytest.mark.parametrize("size", [65, 127, 128, 1000])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_line_that_is_too_long_costs_itself_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: bytes, size: int, place: int
) -> None:
    monkeypatch.setattr(readers, "MAX_ROW_BYTES", 64)
    lines = [b'{"n": 1}', b'{"n": 2}']
    lines.insert(place, b"x" * size)
    rows = read(tmp_path / "a.jsonl", start + b"\n".join(lines))
    assert good(rows) == [{"n": 1}, {"n": 2}]
    assert bad(rows) == [(place + 1, "too_large")]
    assert [row.line for row in rows] == [1, 2, 3]
    assert all(row.reason is None for row in read(tmp_path / "b.jsonl", b'{"n": "%054d"}\n' % 0))


@pytest.mark.parametrize(
    ("data", "rows", "rejects"),
    [
        (b'[{"n": 1},\n{"n": 2', [1], [(2, "invalid_json")]),
        (b'[{"n": 1},\n', [1], [(2, "invalid_json")]),
        (b'[{"n": 1}\n\n', [1], [(3, "invalid_json")]),
        (b"[", [], [(1, "invalid_json")]),
        (b'[{"n": 1}\n{"n": 2}]', [1], [(1, "invalid_json")]),
        (b'[{"n": 1},\n,{"n": 2}]', [1], [(2, "invalid_json")]),
        (b'[{"n": 1},\n{n: 2}, {"n": 3}]', [1], [(2, "invalid_json")]),
        (b'[{"n": 1}]\n\n[{"n": 2}]', [1], [(3, "invalid_json")]),
        (b'[{"n": 1}] x', [1], [(1, "invalid_json")]),
        (b'[{"n": 1},\n\xff]', [1], [(2, "invalid_json")]),
    ],
)
def test_a_broken_array_gives_the_rows_before_the_break_and_says_where_it_is(
    tmp_path: Path, data: bytes, rows: list[int], rejects: list[tuple[int, str]]
) -> None:
    read_rows = read(tmp_path / "a.json", data)
    assert good(read_rows) == [{"n": n} for n in rows]
    assert bad(read_rows) == rejects
    assert "nothing after" in str(read_rows[-1].detail) or "cut off" in str(read_rows[-1].detail)


@pytest.mark.parametrize("ill", [b'"\xff"', b'"\\ud800"'])
def test_bad_text_in_an_array_reaches_the_parser_of_its_row_alone(
    tmp_path: Path, ill: bytes
) -> None:
    data = b'[{"instruction": "a", "output": %b},\n {"instruction": "a", "output": "b"}]' % ill
    first, second = read(tmp_path / "a.json", data)
    assert [first.line, second.line] == [1, 2]
    assert parse_row(second.text)
    with pytest.raises(Reject) as reject:
        parse_row(first.text)
    assert reject.value.reason == "invalid_unicode"


@pytest.mark.parametrize("depth", [*range(900, 1010, 3), 100_000])
def test_deep_nesting_in_an_array_is_no_crash(tmp_path: Path, depth: int) -> None:
    data = b'[{"n": 1},' + b"[" * depth + b"]" * depth + b"]"
    rows = read(tmp_path / "a.json", data)
    assert len(rows) == 2
    assert good(rows[:1]) == [{"n": 1}]


@pytest.mark.parametrize(
    ("line", "span"),
    [
        ("a", 1),
        ("a,b,c", 1),
        ('a,"b"c', 1),
        ('a,"b" "c"', 1),
    ],
)
def test_a_bad_csv_row_costs_itself_alone(tmp_path: Path, line: str, span: int) -> None:
    data = f"instruction,output\none,1\n{line}\ntwo,2\n"
    rows = read(tmp_path / "a.csv", data.encode())
    assert [row["output"] for row in good(rows)] == ["1", "2"]
    assert bad(rows) == [(3, "invalid_csv")]
    assert [row.line for row in rows] == [2, 3, 4]


def test_bytes_that_are_no_utf8_in_csv_reach_the_parser_of_their_row_alone(tmp_path: Path) -> None:
    rows = read(tmp_path / "a.csv", b"instruction,output\na,\xff\nb,c\n")
    assert [row.line for row in rows] == [2, 3]
    with pytest.raises(Reject) as reject:
        parse_row(rows[0].text)
    assert reject.value.reason == "invalid_unicode"
    assert good(rows[1:]) == [{"instruction": "b", "output": "c"}]


def test_a_nul_byte_in_csv_costs_no_other_row(tmp_path: Path) -> None:
    rows = read(tmp_path / "a.csv", b"instruction,output\none,1\na\0b,c\ntwo,2\n")
    assert [row.line for row in rows] == [2, 3, 4]
    assert [row["output"] for row in good(rows[:1] + rows[2:])] == ["1", "2"]


def test_a_csv_quote_that_is_never_closed_is_a_reject_that_names_its_lines(tmp_path: Path) -> None:
    rows = read(tmp_path / "a.csv", b'instruction,output\none,1\ntwo,"2\nthree,3\n')
    assert good(rows) == [{"instruction": "one", "output": "1"}]
    assert bad(rows) == [(3, "invalid_csv")]
    assert rows[-1].detail == "lines 3 to 4: unexpected end of data"


def test_a_csv_header_that_is_broken_gives_no_row_another_meaning(tmp_path: Path) -> None:
    rows = read(tmp_path / "a.csv", b'"a"b,c\n1,2\n3,4\n')
    assert good(rows) == []
    assert bad(rows) == [(1, "invalid_csv")]


def test_a_row_of_parquet_that_python_cannot_hold_costs_itself_alone(tmp_path: Path) -> None:
    offsets, characters = pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pa.py_buffer(b"\xffa")
    ill = pa.Array.from_buffers(pa.string(), 2, [None, offsets, characters])
    for column in (ill, pa.array([10**8, 1], pa.date32())):
        rows = read(tmp_path / "a.parquet", as_parquet(pa.table({"instruction": column})))
        assert bad(rows) == [(1, "invalid_value")]
        assert [row.line for row in rows] == [1, 2]
        assert rows[1].reason is None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"PAR1",
        b"no parquet",
        b"PAR1" + bytes(100) + b"PAR1",
        as_parquet(ROWS)[:-1],
        as_parquet(ROWS)[:-9],
        as_parquet(ROWS)[:50],
        as_parquet(ROWS)[4:],
        as_parquet(ROWS).replace(b"output", b"\xff\xff\xff\xff\xff\xff"),
    ],
    ids=lambda data: f"{len(data)} bytes",
)
def test_garbage_in_place_of_parquet_is_one_reject(tmp_path: Path, data: bytes) -> None:
    rows = read(tmp_path / "a.parquet", data)
    assert bad(rows) == [(1, "unreadable_file")]
    assert len(rows) == 1


@pytest.mark.parametrize("ending", [".gz", ".bz2", ".zst"])
def test_garbage_in_place_of_an_archive_is_one_reject(tmp_path: Path, ending: str) -> None:
    rows = read(tmp_path / f"a.jsonl{ending}", b"this is no archive")
    assert bad(rows) == [(1, "unreadable_file")]
    assert len(rows) == 1


@pytest.mark.parametrize(
    ("ending", "damage"),
    # The .zst that is made here has no checksum by which flipped bits could be told.
    [(".gz", "cut"), (".bz2", "cut"), (".zst", "cut"), (".gz", "flipped"), (".bz2", "flipped")],
)
def test_a_damaged_archive_gives_the_rows_before_the_damage_and_says_where_it_is(
    tmp_path: Path, ending: str, damage: str
) -> None:
    rng = random.Random(0)
    lines = [{"n": n, "noise": f"{rng.getrandbits(256):x}"} for n in range(40_000)]
    data = COMPRESSIONS[ending](as_jsonl(lines))
    if damage == "cut":
        data = data[:-500]
    else:
        place = len(data) * 3 // 4
        flipped = bytes(255 - byte for byte in data[place : place + 50])
        data = data[:place] + flipped + data[place + 50 :]
    *before, last = read(tmp_path / f"a.jsonl{ending}", data)
    assert (last.line, last.reason) == (len(before) + 1, "unreadable_file")
    # The reader takes a megabyte at a time, and loses the one in which the damage is.
    assert len(before) > 10_000
    assert good(before[:10_000]) == lines[:10_000]


# Wild input

FRAGMENTS = st.sampled_from(
    [b"\n", b"\r\n", b"\r", b" ", BOM, b"\xff", b"\0", b"\xc3\xa9", b"\x85", b'"', b"\\", b","]
    + [b"\t", b"[", b"]", b"{", b"}", b":", b'""', b'{"n": 1}', b'"\\ud800"', b"NaN", b"1e999"]
    + [b"null", b'{"instruction": "a", "output": "b"}', b"9" * 5000, b'"a" "b"', b"\xe2\x80\xa8"]
)
WILD = st.lists(FRAGMENTS | st.binary(max_size=8), max_size=20).map(b"".join)
wild = settings(deadline=None, max_examples=120, derandomize=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("wild")


@wild
@given(data=WILD)
@example(data=BOM + b"\n" + BOM + b"\n")
def test_any_bytes_as_json_lines_give_one_row_for_each_line_that_is_not_blank(
    folder: Path, data: bytes
) -> None:
    lines = list(enumerate(data.removeprefix(BOM).split(b"\n"), 1))
    expected = [(number, line.strip()) for number, line in lines if line.strip()]
    rows = read(folder / "a.jsonl", data)
    assert [(row.line, row.text) for row in rows] == [
        (number, line.decode(errors="replace")) for number, line in expected
    ]
    valid = [line.decode(errors="replace").encode() == line for _, line in expected]
    assert [row.reason is None for row in rows] == valid


@wild
@given(data=WILD, start=st.sampled_from([b"", b"[", b'[{"n": 1},', BOM + b" ["]))
def test_any_bytes_as_json_are_no_crash(folder: Path, data: bytes, start: bytes) -> None:
    rows = read(folder / "a.json", start + data)
    if start.endswith(b","):
        assert json.loads(rows[0].text) == {"n": 1}
    if (start + data).strip() not in (b"", BOM, b"[]", BOM + b"[]"):
        text = (start + data).removeprefix(BOM).strip()
        assert rows or re.fullmatch(rb"\[\s*\]|", text)


@wild
@given(data=WILD, start=st.sampled_from([b"", b"instruction,output\n", b'"instruction","output']))
def test_any_bytes_as_csv_are_no_crash(folder: Path, data: bytes, start: bytes) -> None:
    read(folder / "a.csv", start + data)


CELL = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=6) | st.sampled_from(
    ["", ",", '"', "\n", "\r\n", "\r", "\t", ' "x", ', "\ufeff"]
)


@wild
@given(
    rows=st.lists(st.tuples(CELL, CELL), max_size=6),
    dialect=st.sampled_from(["excel", "unix", "excel-tab"]),
)
def test_any_table_comes_back_from_csv_with_the_right_lines(
    folder: Path, rows: list[tuple[str, str]], dialect: str
) -> None:
    text, lines = io.StringIO(newline=""), []
    writer = csv.writer(text, dialect=dialect)
    writer.writerow(["instruction", "output"])
    for row in rows:
        lines.append(1 + len(re.findall(r"\r\n|\r|\n", text.getvalue())))
        writer.writerow(row)
    name = "a.tsv" if dialect == "excel-tab" else "a.csv"
    found = read(folder / name, text.getvalue().encode())
    assert [tuple(row.values()) for row in good(found)] == rows
    assert [row.line for row in found] == lines


@wild
@given(
    items=st.lists(
        st.recursive(
            st.none() | st.integers() | st.text(max_size=5) | st.floats(allow_nan=False),
            lambda inner: (
                st.lists(inner, max_size=2)
                | st.dictionaries(st.text(max_size=3), inner, max_size=2)
            ),
            max_leaves=4,
        ),
        max_size=4,
    ),
    indent=st.sampled_from([None, 0, 2]),
    ascii_only=st.booleans(),
)
def test_any_array_comes_back_from_json(
    folder: Path, items: list[Any], indent: int | None, ascii_only: bool
) -> None:
    text = json.dumps(items, indent=indent, ensure_ascii=ascii_only)
    assert good(read(folder / "a.json", text.encode())) == items


PARQUET = as_parquet(
    pa.table(
        {
            "instruction": [f"question {n}" for n in range(50)],
            "output": [f"answer {n % 3}" for n in range(50)],
            "chat": [[{"role": "user", "content": str(n)}] for n in range(50)],
            "date": pa.array(range(50), pa.date32()),
        }
    )
)
GZIP = gzip.compress(as_jsonl([{"n": n, "text": "x" * (n % 7)} for n in range(200)]), mtime=0)
ZSTD = COMPRESSIONS[".zst"](gzip.decompress(GZIP))


@wild
@given(
    original=st.sampled_from([("a.parquet", PARQUET), ("a.jsonl.gz", GZIP), ("a.jsonl.zst", ZSTD)]),
    flips=st.lists(st.tuples(st.floats(0, 0.9999), st.integers(0, 255)), max_size=4),
    cut=st.just(1.0) | st.floats(0, 1),
)
def test_flipped_and_missing_bytes_in_binary_files_are_no_crash(
    folder: Path,
    original: tuple[str, bytes],
    flips: list[tuple[float, int]],
    cut: float,
) -> None:
    name, whole = original
    data = bytearray(whole)
    for place, byte in flips:
        data[int(place * len(data))] = byte
    data = data[: int(cut * len(data))]
    rows = read(folder / name, bytes(data))
    if bytes(data) == whole:
        assert len(rows) == (50 if name == "a.parquet" else 200)
        assert bad(rows) == []
