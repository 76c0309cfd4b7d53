from __future__ import annotations

import random

import numpy as np
import pyarrow as pa
import pytest

from instructdiff_ray.pool import partition
from instructdiff_ray.pool.partition import (
    PARTITIONS,
    HashPartitions,
    id_prefixes,
    partition_numbers,
)

SCHEMA = pa.schema([("sample_id", pa.string()), ("value", pa.int64())])


def rows(count: int, seed: int = 0) -> pa.Table:
    rng = random.Random(seed)
    ids = [f"{rng.getrandbits(128):032x}" for _ in range(count)]
    return pa.table([ids, range(count)], schema=SCHEMA)


@pytest.mark.parametrize("buffer", [1 << 19, 1000, 7])
def test_partitions_hold_every_row_once_and_follow_the_order_of_ids(
    buffer: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partition, "BUFFER_ROWS", buffer)
    table = rows(5000)
    with HashPartitions(SCHEMA) as spilled:
        for start in range(0, 5000, 300):
            spilled.add(table.slice(start, 300))
        read = list(spilled.read())
    assert len(read) == PARTITIONS
    joined = pa.concat_tables(table.sort_by("sample_id") for table in read)
    assert joined.to_pylist() == table.sort_by("sample_id").to_pylist()
    for number, rows_read in enumerate(read):
        assert set(partition_numbers(rows_read)) <= {number}


def test_an_empty_table_has_empty_partitions() -> None:
    with HashPartitions(SCHEMA) as empty:
        assert [table.num_rows for table in empty.read()] == [0] * PARTITIONS


def test_prefixes_are_in_the_order_of_ids_also_of_numbered_duplicates() -> None:
    table = rows(1000).sort_by("sample_id")
    prefixes = id_prefixes(table)
    assert prefixes.tolist() == [int(i[:16], 16) for i in table["sample_id"].to_pylist()]
    assert (np.diff(prefixes.astype(object)) >= 0).all()
    numbered = pa.table({"sample_id": [f"{table['sample_id'][0]}-1"]})
    assert id_prefixes(numbered)[0] == prefixes[0]


def test_the_folder_for_temporary_rows_goes(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(partition, "BUFFER_ROWS", 10)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(RuntimeError, match="meanwhile"), HashPartitions(SCHEMA) as spilled:
        spilled.add(rows(100))
        assert list(tmp_path.iterdir())
        raise RuntimeError("meanwhile")
    assert not list(tmp_path.iterdir())
