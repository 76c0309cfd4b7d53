from __future__ import annotations

import random

import numpy as np
import pyarrow as pa
import pytest
import ray

from instructdiff_ray.errors import UserError
from instructdiff_ray.pool.partition import (
    MOST_PARTITIONS,
    ROWS_PER_PARTITION,
    id_prefixes,
    partition_bounds,
    partition_count,
    partition_numbers,
    split_by_partition,
)
from instructdiff_ray.pool.tasks import for_each_partition, results, task

SCHEMA = pa.schema([("sample_id", pa.string()), ("value", pa.int64())])


def rows(count: int, seed: int = 0) -> pa.Table:
    rng = random.Random(seed)
    ids = [f"{rng.getrandbits(128):032x}" for _ in range(count)]
    return pa.table([ids, range(count)], schema=SCHEMA)


@pytest.mark.parametrize("count", [1, 2, 64, 1024, MOST_PARTITIONS])
def test_partitions_hold_every_row_once_and_follow_the_order_of_ids(count: int) -> None:
    table = rows(5000)
    parts = split_by_partition(table, count)
    assert len(parts) == count
    joined = pa.concat_tables(part.sort_by("sample_id") for part in parts)
    assert joined.to_pylist() == table.sort_by("sample_id").to_pylist()
    for number, part in enumerate(parts):
        assert {*partition_numbers(part, count).tolist()} <= {number}
        low, high = partition_bounds(number, count)
        ids = part["sample_id"].to_pylist()
        assert all(low <= i and (high is None or i < high) for i in ids)
    assert partition_bounds(count - 1, count)[1] is None


def test_a_partition_of_more_lies_in_one_of_fewer() -> None:
    table = rows(1000)
    many, few = partition_numbers(table, 256), partition_numbers(table, 8)
    assert (many // 32 == few).all()


def test_the_number_of_partitions_grows_with_the_rows_and_ends() -> None:
    size = ROWS_PER_PARTITION
    found = [partition_count(n) for n in (0, 1, size, size + 1, 100 * size, 10**12)]
    assert found == [1, 1, 1, 2, 128, MOST_PARTITIONS]


def test_prefixes_are_in_the_order_of_ids_also_of_numbered_duplicates() -> None:
    table = rows(1000).sort_by("sample_id")
    prefixes = id_prefixes(table)
    assert prefixes.tolist() == [int(i[:16], 16) for i in table["sample_id"].to_pylist()]
    assert (np.diff(prefixes.astype(object)) >= 0).all()
    numbered = pa.table({"sample_id": [f"{table['sample_id'][0]}-1"]})
    assert id_prefixes(numbered)[0] == prefixes[0]


@pytest.mark.parametrize("count", [1, 8])
def test_a_task_has_all_rows_of_its_partition(count: int, ray_session: None) -> None:
    tables = [rows(700, seed) for seed in range(3)]

    def ids_of(number: int, part: pa.Table) -> tuple[int, list[str]]:
        return number, sorted(part["sample_id"].to_pylist())

    found = for_each_partition([ray.put(table) for table in tables], count, ids_of)
    assert [number for number, _ in found] == [*range(count)]
    every = sorted(i for table in tables for i in table["sample_id"].to_pylist())
    assert [i for _, ids in found for i in ids] == every


@pytest.mark.parametrize("error", [UserError, FileNotFoundError])
def test_what_a_task_raises_is_raised_where_its_result_is_wanted(
    error: type[Exception], ray_session: None
) -> None:
    def failing() -> None:
        raise error("this can't be")

    with pytest.raises(error, match="this can't be"):
        results([task(failing)()])
