"""Rows by sample_id, however many: split by the id's first digits.

A sample_id is a hash in hexadecimal digits, so its first digits spread any pool evenly. One after
the other, sorted partitions give the rows in the order of their ids, and a worker holds one.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

ROWS_PER_PARTITION = 1 << 20
MOST_PARTITIONS = 1 << 12  # three digits


def partition_count(rows: int) -> int:
    """Into how many partitions so many rows go: a power of two, so that of two tables a partition
    of the one lies within a partition of the other."""
    count = 1
    while count < MOST_PARTITIONS and rows > count * ROWS_PER_PARTITION:
        count *= 2
    return count


def id_array(table: pa.Table) -> np.ndarray:
    """sample_id as fixed-width bytes, which NumPy sorts and searches quickly."""
    return table["sample_id"].to_numpy().astype("S")


def id_prefixes(table: pa.Table) -> np.ndarray:
    """The first 16 digits of each sample_id as a number: uint64, in the order of the ids."""
    digits = _digits(id_array(table), 16).astype(np.uint64)
    shifts = np.arange(60, -1, -4, dtype=np.uint64)
    return np.asarray((digits << shifts).sum(axis=1, dtype=np.uint64))


def partition_numbers(table: pa.Table, count: int) -> np.ndarray:
    """The partition of each row, 0 to count − 1; it grows with the id."""
    first = (_digits(id_array(table), 3) << np.array([8, 4, 0])).sum(axis=1)
    return np.asarray(first * count // MOST_PARTITIONS)


def partition_bounds(number: int, count: int) -> tuple[str, str | None]:
    """The least id that may be in a partition, and the least that is beyond it (None: none is)."""
    low, high = (MOST_PARTITIONS * n // count for n in (number, number + 1))
    return f"{low:03x}", f"{high:03x}" if high < MOST_PARTITIONS else None


def split_by_partition(table: pa.Table, count: int) -> list[pa.Table]:
    """The rows of each partition, in their order."""
    numbers = partition_numbers(table, count)
    order = np.argsort(numbers, kind="stable")
    ends = np.searchsorted(numbers[order], np.arange(count + 1))
    ordered = table.combine_chunks().take(order)
    return [ordered.slice(start, end - start) for start, end in zip(ends, ends[1:], strict=False)]


def partition_file(kind: str, number: int) -> str:
    """The name of the file that holds one partition of a table."""
    return f"{kind}-{number:05}.parquet"


def among(values: np.ndarray, ordered: np.ndarray) -> np.ndarray:
    """A mask: which `values` are in `ordered`. It is sorted, so a block costs no sort of it all."""
    if not len(ordered):
        return np.zeros(len(values), dtype=bool)
    places = np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)
    return np.asarray(ordered[places] == values)


def _digits(ids: np.ndarray, count: int) -> np.ndarray:
    """[N, count]: the value of each id's first hexadecimal digits."""
    letters = np.zeros((len(ids), max(count, ids.dtype.itemsize)), np.uint8)
    letters[:, : ids.dtype.itemsize] = ids.view(np.uint8).reshape(len(ids), ids.dtype.itemsize)
    values = letters[:, :count].astype(np.int64)
    return np.where(values >= ord("a"), values - ord("a") + 10, values - ord("0"))
