"""What is said of a pool of which too much was rejected."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest

from instructdiff_ray.errors import UserError
from instructdiff_ray.pool.pool import REJECTS, REJECTS_FILE, Pool
from instructdiff_ray.pool.rejects import check_rejects, column_hint
from instructdiff_ray.storage.filesystem import Folder


def pool_of(folder: Path, rejects: list[tuple[str, str]], samples: int = 0) -> Pool:
    """A pool with these rejects, (reason, source) each."""
    table = pa.table(
        {
            "file": ["a.jsonl"] * len(rejects),
            "line": list(range(1, len(rejects) + 1)),
            "reason": [reason for reason, _ in rejects],
            "detail": [""] * len(rejects),
            "source": [source for _, source in rejects],
        },
        schema=REJECTS,
    )
    with Folder(str(folder)).open_table(REJECTS_FILE, REJECTS) as write:
        for part in (table.slice(0, 0), table.slice(0, 1), table.slice(1)):
            write(part)
    reasons = [reason for reason, _ in rejects]
    rejected = {reason: reasons.count(reason) for reason in dict.fromkeys(reasons)}
    counts = {"rejected": rejected, "read": samples + len(rejects), "pool": samples}
    return Pool(Folder(str(folder)), "key", "digest", [], 1, False, counts)


def unknown(count: int) -> list[tuple[str, str]]:
    rows = ({"problem": f"{n} + 1? " + "Why? " * 50, "solution": str(n)} for n in range(count))
    return [("unknown_schema", json.dumps(row)) for row in rows]


def test_where_columns_are_not_known_they_are_shown_with_a_guess(tmp_path: Path) -> None:
    pool = pool_of(tmp_path, [("invalid_json", "{"), *unknown(9)], samples=2)
    with pytest.raises(UserError) as raised:
        check_rejects(pool, 0.5)
    line = str(raised.value)
    assert "\n" not in line
    assert line.startswith(
        "10 of 12 rows were rejected (invalid_json 1, unknown_schema 9), more than"
        " data.max_reject_ratio=0.5; their columns are problem, solution; say which hold what is"
        " asked and answered, perhaps 'data.columns={instruction: problem, response: solution}';"
        ' the first rows: {"problem": "0 + 1? Why? '
    )
    assert line.count('"solution": "') == 3
    assert len(line) < 700


def test_a_guess_is_quoted_as_the_command_line_takes_it(tmp_path: Path) -> None:
    source = json.dumps({"the question: in words": "q", "answer (short)": "a"})
    hint = column_hint(
        pool_of(tmp_path, [("unknown_schema", source)]).folder, {"unknown_schema": 1}
    )
    assert hint is not None
    guess = '{instruction: "the question: in words", response: "answer (short)"}'
    assert f"perhaps 'data.columns={guess}'" in hint
    from hydra.core.override_parser.overrides_parser import OverridesParser

    override = OverridesParser.create().parse_override(f"data.columns={guess}")
    assert override.value() == {
        "instruction": "the question: in words",
        "response": "answer (short)",
    }


def test_columns_that_tell_nothing_are_shown_without_one(tmp_path: Path) -> None:
    rejects = [("unknown_schema", json.dumps({"text": "a"}))]
    hint = column_hint(pool_of(tmp_path, rejects).folder, {"unknown_schema": 1})
    assert hint == (
        "their columns are text; say which hold what is asked and answered, as in"
        ' \'data.columns={instruction: …, response: …}\'; the first rows: {"text": "a"}'
    )


def test_where_most_rejects_have_another_reason_columns_are_not_spoken_of(tmp_path: Path) -> None:
    pool = pool_of(tmp_path, [*unknown(2), *[("invalid_json", "{")] * 3])
    with pytest.raises(UserError, match=r"look at .*/rejects.parquet"):
        check_rejects(pool, 0.5)


def test_rows_too_long_to_be_held_whole_leave_the_usual_line(tmp_path: Path) -> None:
    pool = pool_of(tmp_path, [("unknown_schema", '{"text": "' + "a" * 10_000)])
    with pytest.raises(UserError, match=r"look at .*/rejects.parquet"):
        check_rejects(pool, 0.5)
