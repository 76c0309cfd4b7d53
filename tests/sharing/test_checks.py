"""Each check refuses what it is meant for, whatever was altered; what was published passes all."""

from __future__ import annotations

import hashlib
import io
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instructdiff_ray.errors import UserError
from instructdiff_ray.models import rating, template
from instructdiff_ray.models.encoding import LIKELIHOOD, RATING
from instructdiff_ray.pool.partition import partition_file
from instructdiff_ray.scoring.blocks import NOT_FINITE, OUT_OF_MEMORY
from instructdiff_ray.sharing.checks import (
    REASONS,
    ROUNDING,
    TOLERANCE,
    check_content,
    check_ids,
    check_lengths,
    check_unscored,
    check_values,
    compare_scores,
    published_schema,
    read_scores,
    tolerance,
)
from instructdiff_ray.sharing.publication import PublishedFile, PublishedScores, scores_file
from instructdiff_ray.storage.artifacts import make_key

VOCABULARY = 500
ROWS = 40
FEW = settings(max_examples=25)


def rows_of(seed: int = 0, measures: tuple[str, ...] = LIKELIHOOD) -> pa.Table:
    """Scores as they may be; of every tenth sample there are none."""
    rng = np.random.default_rng(seed)
    ids = sorted(hashlib.sha256(f"{seed} {n}".encode()).hexdigest()[:32] for n in range(ROWS))
    none = np.arange(ROWS) % 10 == 9
    highest = {"nll": 20.0, "entropy": math.log(VOCABULARY), "rating": 4.0}
    columns = {m: pa.array(rng.uniform(0, highest[m], ROWS), mask=none) for m in measures}
    return pa.table(
        {
            "sample_id": ids,
            "response_tokens": rng.integers(1, 50, ROWS),
            **columns,
            "reason": [NOT_FINITE if n else None for n in none],
        },
    ).cast(published_schema(measures))


def packed(table: pa.Table) -> bytes:
    out = io.BytesIO()
    pq.write_table(table, out, compression="zstd")
    return out.getvalue()


def published(data: bytes, rows: int, partition: int = 0, partitions: int = 1) -> Any:
    """The entry of scores in one file, and the file's."""
    scorer: dict[str, Any] = {"model": "a", "rendering": {}, "precision": "fp32", "version": 2}
    key = make_key(**scorer)
    digest = hashlib.sha256(data).hexdigest()
    file = PublishedFile(scores_file(key, partition), partition, rows, len(data), digest)
    measures = list(LIKELIHOOD)
    return PublishedScores(
        "base", 1, None, key, scorer, measures, rows, partitions, [file], []
    ), file


def check(table: pa.Table) -> None:
    """All that needs no pool, as a pull does it."""
    data = packed(table)
    scores, file = published(data, table.num_rows)
    check_content(file, data)
    read_scores(scores, file, data)
    check_ids(file, table, 1)
    check_values(file, table, VOCABULARY)


def put(table: pa.Table, column: str, row: int, value: Any) -> pa.Table:
    values = table[column].to_pylist()
    values[row] = value
    field = table.schema.field(column)
    return table.set_column(
        table.schema.get_field_index(column), field, pa.array(values, field.type)
    )


SCORED = st.integers(0, ROWS - 1).filter(lambda row: row % 10 != 9)


@FEW
@given(st.integers(0, 100))
def test_what_was_published_passes(seed: int) -> None:
    table = rows_of(seed)
    check(table)
    check_lengths(published(b"", 0)[1], table, table)
    assert compare_scores("base", table, table, "fp32") == ROWS


def test_ratings_pass_and_have_a_scale() -> None:
    table, (_, file) = rows_of(measures=RATING), published(b"", 0)
    check_values(file, table, VOCABULARY)
    with pytest.raises(UserError, match="rating that can't be"):
        check_values(file, put(table, "rating", 0, 5.1), VOCABULARY)


@FEW
@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_byte_that_was_changed_is_refused(place: int, change: int) -> None:
    data = bytearray(packed(rows_of()))
    _, file = published(bytes(data), ROWS)
    data[place % len(data)] ^= change
    with pytest.raises(UserError, match="another digest"):
        check_content(file, bytes(data))
    with pytest.raises(UserError, match="bytes instead of"):
        check_content(file, bytes(data[:-1]))


IMPOSSIBLE = {
    "nll": st.floats(max_value=-2 * ROUNDING) | st.sampled_from([math.nan, math.inf]),
    "entropy": st.floats(max_value=-2 * ROUNDING)
    | st.floats(min_value=math.log(VOCABULARY) + 2 * ROUNDING)
    | st.just(math.nan),
}


@FEW
@given(SCORED, st.sampled_from(LIKELIHOOD).flatmap(lambda m: st.tuples(st.just(m), IMPOSSIBLE[m])))
def test_a_score_that_can_t_be_is_refused_and_the_sample_named(
    row: int, altered: tuple[str, float]
) -> None:
    table = put(rows_of(), altered[0], row, altered[1])
    sample = table["sample_id"][row].as_py()
    with pytest.raises(UserError, match=f"sample {sample} has a {altered[0]} that can't be"):
        check(table)


@FEW
@given(SCORED, st.sampled_from(["nll", "entropy"]))
def test_a_score_that_is_missing_is_refused(row: int, measure: str) -> None:
    table = rows_of()
    with pytest.raises(UserError, match=f"has no {measure}"):
        check(put(table, measure, row, None))
    with pytest.raises(UserError, match="a reason to have none as well"):
        check(put(table, "reason", row, NOT_FINITE))
    with pytest.raises(UserError, match="a reason to have none as well"):
        check(put(table, measure, 9, 1.0))
    for reason in ("<script>", "bad_sample", OUT_OF_MEMORY):
        with pytest.raises(UserError, match="for a reason that is none"):
            check(put(table, "reason", 9, reason))


def test_all_reasons_that_encoders_give_are_known() -> None:
    given = {
        reason
        for module in (template, rating)
        for reason in re.findall(r'Reject\(\s*"(\w+)"', Path(module.__file__ or "").read_text())
    }
    assert given | {NOT_FINITE} == {*REASONS}


def test_more_samples_without_scores_than_may_be_rejected_are_refused() -> None:
    check_unscored("base", 10, {NOT_FINITE: 3, "too_long": 2}, 0.5)
    check_unscored("base", 0, {}, 0.5)
    with pytest.raises(UserError, match=r"max_reject_ratio=0.5 .* \(not_finite 4, too_long 2\)"):
        check_unscored("base", 10, {NOT_FINITE: 4, "too_long": 2}, 0.5)


@FEW
@given(SCORED, st.none() | st.integers(-5, 0))
def test_a_scored_sample_has_response_tokens(row: int, tokens: int | None) -> None:
    with pytest.raises(UserError, match="has no scored token"):
        check(put(rows_of(), "response_tokens", row, tokens))


@FEW
@given(st.integers(0, ROWS - 1), st.integers(0, ROWS - 1))
def test_ids_are_each_there_once_and_in_order(row: int, other: int) -> None:
    table = rows_of()
    ids = table["sample_id"].to_pylist()
    if row != other:
        with pytest.raises(UserError, match="there twice, or not in the order"):
            check(put(table, "sample_id", row, ids[other]))
    for wrong in (None, "", ids[row].upper() + "G", f"{ids[row]}/.."):
        with pytest.raises(UserError, match="a row without an id"):
            check(put(table, "sample_id", row, wrong))


def test_ids_are_those_of_the_files_partition() -> None:
    table = rows_of()
    for partition in (0, 1):
        scores, file = published(packed(table), ROWS, partition, partitions=2)
        with pytest.raises(UserError, match="samples of another partition"):
            check_ids(file, table, scores.partitions)
    assert file.name.endswith(partition_file("scores", 1))


@FEW
@given(st.integers(0, ROWS - 1))
def test_a_row_that_is_gone_or_a_column_that_is_new_is_refused(row: int) -> None:
    table = rows_of()
    without = table.filter(pa.array(np.arange(ROWS) != row))
    with_text = table.append_column("text", pa.array(["secret"] * ROWS))
    integers = table.set_column(2, "nll", pa.array([1] * ROWS))
    for changed, line in (
        (without, f"has {ROWS - 1} rows, not {ROWS}"),
        (with_text, "has other columns than sample_id, response_tokens, nll, entropy, reason"),
        (integers, "has other columns"),
    ):
        data = packed(changed)
        scores, file = published(data, ROWS)
        with pytest.raises(UserError, match=line):
            read_scores(scores, file, data)
    values = [b"\xff" if reason else None for reason in rows_of()["reason"].to_pylist()]
    bytes_ = pa.array(values, pa.binary())
    no_text = pa.Array.from_buffers(pa.string(), ROWS, bytes_.buffers(), bytes_.null_count)
    data = packed(rows_of().set_column(4, "reason", no_text))
    scores, file = published(data, ROWS)
    with pytest.raises(UserError, match="is no Parquet file"):
        read_scores(scores, file, data)
    scores, file = published(b"PAR1 and no more", ROWS)
    with pytest.raises(UserError, match="is no Parquet file"):
        read_scores(scores, file, b"PAR1 and no more")


def test_a_file_that_would_fill_the_memory_is_refused_by_its_footer() -> None:
    long = pa.array(["x" * 3_000_000] * ROWS).dictionary_encode()
    for table, rows, line in (
        (rows_of(), ROWS - 1, f"has {ROWS} rows, not {ROWS - 1}"),
        (rows_of().set_column(4, "reason", long.cast(pa.string())), ROWS, "values that are longer"),
        (rows_of().append_column("text", long), ROWS, "has other columns"),
    ):
        data = packed(table)
        footer = int.from_bytes(data[-8:-4], "little") + 8
        no_pages = b"PAR1" + bytes(len(data) - footer - 4) + data[-footer:]
        scores, file = published(no_pages, rows)
        with pytest.raises(UserError, match=line):
            read_scores(scores, file, no_pages)
    with pytest.raises(UserError, match="a row without an id"):
        check(put(rows_of(), "sample_id", 3, f"{rows_of()['sample_id'][3].as_py()}-{'1' * 10}"))


@FEW
@given(st.integers(0, ROWS - 1), st.integers(1, 9))
def test_a_sample_of_another_length_is_another_sample(row: int, more: int) -> None:
    table, (_, file) = rows_of(), published(b"", 0)
    index = table.select(["sample_id", "response_tokens"])
    longer = put(index, "response_tokens", row, index["response_tokens"][row].as_py() + more)
    with pytest.raises(UserError, match=f"sample {table['sample_id'][row].as_py()} has another"):
        check_lengths(file, table, longer)
    elsewhere = longer.filter(pa.array(np.arange(ROWS) != row))
    check_lengths(file, table, elsewhere)  # samples that are not in the pool say nothing


@pytest.mark.parametrize("precision", TOLERANCE)
def test_a_difference_beyond_what_machines_make_is_refused(precision: str) -> None:
    table = rows_of()
    here = table.filter(pa.array(np.arange(ROWS) % 2 == 0)).take(np.arange(ROWS // 2)[::-1])
    limit = float(tolerance(precision, here["response_tokens"].to_numpy())[0])

    def moved(add: float) -> pa.Table:
        return put(here, "entropy", 0, here["entropy"][0].as_py() + add)

    assert compare_scores("base", table, moved(0.99 * limit), precision) == ROWS // 2
    sample = here["sample_id"][0].as_py()
    for add in (1.01 * limit, -1.01 * limit, math.nan):
        with pytest.raises(UserError, match=f"of sample {sample} are not those of this model"):
            compare_scores("base", table, moved(add), precision)
    with pytest.raises(UserError, match="are not those"):
        compare_scores("base", table, put(here, "nll", 0, None), precision)


def test_of_a_longer_response_less_is_taken_for_rounding() -> None:
    short, long = tolerance("bf16", np.array([1, 400]))
    assert short == pytest.approx(0.32) and long == pytest.approx(0.035)
    assert tolerance("fp32", np.array([1, 400])) == pytest.approx(1e-3)
