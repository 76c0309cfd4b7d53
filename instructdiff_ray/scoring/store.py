"""What scorers leave behind: pieces, and the scores of a pool that are gathered from them.

A piece holds a batch of scores under one model and appears whole. Rows that could not be scored
stand in pieces of their own, `rejects-*.parquet`. Those that a machine was to blame for are tried
again when scores are next computed.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from instructdiff_ray.errors import DamagedFile
from instructdiff_ray.pool.partition import Buckets, bucket_numbers, id_array
from instructdiff_ray.pool.pool import Pool, among, of_domain
from instructdiff_ray.storage.filesystem import Folder


def piece_schema(measures: Sequence[str]) -> pa.Schema:
    """The measures are null, and reason and detail are not, where a sample could not be scored."""
    return pa.schema(
        [("sample_id", pa.string()), ("response_tokens", pa.int32())]
        + [(measure, pa.float64()) for measure in measures]
        + [("reason", pa.string()), ("detail", pa.string())]
    )


SCORES = "scores.parquet"
READ_AHEAD = 32


def write_pieces(folder: Folder, scores: pa.Table) -> None:
    """Write scores: one piece of those that were scored, one of those that were not."""
    scored = pc.is_null(scores["reason"])
    for kind, rows in (
        ("piece", scores.filter(scored)),
        ("rejects", scores.filter(pc.invert(scored))),
    ):
        if rows.num_rows:
            folder.write_table(f"{kind}-{uuid.uuid4().hex}.parquet", rows)


def read_pieces(folder: Folder, schema: pa.Schema) -> Buckets:
    """All rows of all pieces, with the schema's columns. A damaged piece is deleted, and its rows
    are missing."""
    buckets = Buckets(schema)
    names = iter(sorted(name for name in folder.sizes() if name.endswith(".parquet")))

    def read(name: str) -> pa.Table:
        try:
            return folder.read_table(name)  # whole, or damage elsewhere goes unnoticed
        except (DamagedFile, FileNotFoundError):  # the other run that noticed it has deleted it
            return schema.empty_table()

    # Thousands of small files: in an object store each is a wait of its own.
    with ThreadPoolExecutor(READ_AHEAD) as threads:
        while some := list(islice(names, READ_AHEAD)):
            for table in threads.map(read, some):
                buckets.add(table)
    return buckets


def aligned(pool: Pool, *others: Buckets) -> Iterator[tuple[pa.Table, ...]]:
    """Each bucket of the pool's index, with the same bucket of the others."""
    index = pool.index()
    group = next(index, None)
    for number, tables in enumerate(zip(*(other.read() for other in others), strict=True)):
        if group is not None and bucket_numbers(group.slice(0, 1))[0] == number:
            yield group, *tables
            group = next(index, None)
    assert group is None, "the index is not in the order of buckets"


def gather(
    pool: Pool, pieces: Mapping[str | None, Folder], measures: Sequence[str], target: Folder
) -> None:
    """Write `scores.parquet`: one row for each sample of the pool, in the index's order.

    pieces: of each domain, or of all under None. Two runs at once may both have scored a sample:
    any of its rows is right, the least is taken, so that the choice does not depend on file names.
    """
    schema = piece_schema(measures)
    with ExitStack() as stack:
        write = stack.enter_context(target.open_table(SCORES, schema))
        found = [stack.enter_context(read_pieces(folder, schema)) for folder in pieces.values()]
        for index, *tables in aligned(pool, *found):
            wanted, rows = id_array(index), []
            for domain, table in zip(pieces, tables, strict=True):
                own = np.full(len(wanted), True) if domain is None else of_domain(index, domain)
                rows.append(_rows_of(table, wanted[own], measures))
            scores = pa.concat_tables(rows)
            write((scores if len(rows) == 1 else scores.sort_by("sample_id")).combine_chunks())


def _rows_of(table: pa.Table, wanted: np.ndarray, measures: Sequence[str]) -> pa.Table:
    """The row of each wanted id, in their order. Raises DamagedFile where one is missing."""
    ids = id_array(table)
    order = np.lexsort((*(table[name].to_numpy() for name in reversed(measures)), ids))
    unique, first = np.unique(ids[order], return_index=True)
    places = np.searchsorted(unique, wanted)
    if not among(wanted, unique).all():
        raise DamagedFile("a piece was damaged and is deleted; the same command goes on")
    return table.take(order[first[places]])
