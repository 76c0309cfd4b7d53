"""Whether pulled scores can be right: pure functions, each of which names the file or sample that
is not.

What they can't see is a value that is wrong and possible: that is seen where samples are scored
again, and compared.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from instructdiff_ray.errors import UserError, require
from instructdiff_ray.pool.partition import among, id_array, partition_bounds
from instructdiff_ray.scoring.blocks import NOT_FINITE
from instructdiff_ray.sharing.publication import PublishedFile, PublishedScores
from instructdiff_ray.storage.filesystem import VERIFIED

SAMPLE_ID = r"^[0-9a-f]{32}(-[0-9]{1,9})?$"
# Why encoders and scorers give a sample no scores; what a machine is too small for stays at home.
REASONS = (NOT_FINITE, "chat_template", "no_ending", "no_response_tokens", "too_long")
HIGHEST_RATING = 5.0
# What scores of one model in one precision may differ by between machines, in nats: always, and
# more of a response of n tokens by so much / √n, for rounding falls to both sides and a mean over
# many tokens loses it. docs/design.md says what was measured.
TOLERANCE = {"fp32": (1e-3, 0.0), "bf16": (0.02, 0.3)}
ROUNDING = 1e-3  # of what is summed up in fp32, in nats


def published_schema(measures: Sequence[str]) -> pa.Schema:
    """Of the files: the measures are null, and the reason is not, where a sample could not be
    scored."""
    return pa.schema(
        [("sample_id", pa.string()), ("response_tokens", pa.int32())]
        + [(measure, pa.float64()) for measure in measures]
        + [("reason", pa.string())]
    )


def check_content(file: PublishedFile, data: bytes) -> None:
    """Raises UserError where the file is not the one that was published."""
    require(len(data) == file.size, f"{file.name} has {len(data):,} bytes instead of {file.size:,}")
    found = hashlib.sha256(data).hexdigest()
    require(found == file.sha256, f"{file.name} has another digest than it had when published")


def read_scores(scores: PublishedScores, file: PublishedFile, data: bytes) -> pa.Table:
    """The rows of a file. Raises UserError where it has another schema, or number of rows, which
    its footer tells before anything is unpacked."""
    schema = published_schema(scores.measures)
    try:
        with pq.ParquetFile(pa.BufferReader(data), **VERIFIED) as parquet:
            _check_footer(file, parquet, schema)
            table = parquet.read()
        table.validate(full=True)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{file.name} is no Parquet file ({type(error).__name__})") from None
    return table.combine_chunks()


def _check_footer(file: PublishedFile, parquet: pq.ParquetFile, schema: pa.Schema) -> None:
    footer = parquet.metadata
    require(
        parquet.schema_arrow.equals(schema),
        f"{file.name} has other columns than {', '.join(schema.names)}",
    )
    require(
        footer.num_rows == file.rows, f"{file.name} has {footer.num_rows:,} rows, not {file.rows:,}"
    )
    groups = map(footer.row_group, range(footer.num_row_groups))
    require(
        sum(group.total_byte_size for group in groups) <= file.most_bytes,
        f"{file.name} has values that are longer than ids, numbers and reasons are",
    )


def check_ids(file: PublishedFile, table: pa.Table, partitions: int) -> None:
    """Raises UserError where these are not ids of the file's partition, each once and in order."""
    column = table["sample_id"]
    well_formed = pc.fill_null(pc.match_substring_regex(column, SAMPLE_ID), False)
    require(bool(pc.all(well_formed, min_count=0).as_py()), f"{file.name} has a row without an id")
    ids = id_array(table)
    low, high = partition_bounds(file.partition, partitions)
    require(
        not len(ids) or ids[0] >= low.encode() and (high is None or ids[-1] < high.encode()),
        f"{file.name} has samples of another partition",
    )
    wrong = np.flatnonzero(ids[1:] <= ids[:-1])
    if len(wrong):
        sample = ids[wrong[0] + 1].decode()
        raise UserError(f"{file.name}: sample {sample} is there twice, or not in the order of ids")


def check_values(file: PublishedFile, table: pa.Table, vocabulary: int) -> None:
    """Raises UserError where a score is impossible: not finite, an NLL below 0, an entropy beyond
    [0, ln V], a rating beyond its scale; or where a sample has neither scores nor a reason, or
    both. vocabulary: V, words that the model's head tells apart."""
    measures, reasons = table.schema.names[2:-1], table["reason"]
    unscored = _mask(pc.is_valid(reasons))
    for measure in measures:
        inconsistent = _mask(pc.is_null(table[measure])) != unscored
        _refuse(file, table, inconsistent, f"has no {measure}, or a reason to have none as well")
    unknown = unscored & ~_mask(pc.is_in(reasons, value_set=pa.array(REASONS)))
    _refuse(file, table, unknown, "has no scores, for a reason that is none")
    tokens = pc.fill_null(table["response_tokens"], -1).to_numpy()
    _refuse(file, table, tokens < np.where(unscored, 0, 1), "has no scored token")
    highest = {"entropy": math.log(vocabulary), "rating": HIGHEST_RATING}
    for measure in measures:
        values = pc.fill_null(table[measure], 0.0).to_numpy()
        limit = highest.get(measure, math.inf)
        impossible = ~np.isfinite(values) | (values < -ROUNDING) | (values > limit + ROUNDING)
        _refuse(file, table, impossible, f"has a {measure} that can't be", values)


def check_lengths(file: PublishedFile, table: pa.Table, index: pa.Table) -> None:
    """Raises UserError where a sample of the pool has another number of response tokens here, under
    the same tokenizer and template: then it was not this sample that was scored.

    index: sorted, with sample_id and response_tokens; samples that only one of them has are passed
    over.
    """
    ids, of_pool = id_array(table), id_array(index)
    shared = among(ids, of_pool)
    here = np.full(len(ids), -1)
    here[shared] = index["response_tokens"].to_numpy()[np.searchsorted(of_pool, ids[shared])]
    there = table["response_tokens"].to_numpy()
    text = "has another number of response tokens than in the pool here"
    _refuse(file, table, shared & (here != there), text, there)


def tolerance(precision: str, tokens: np.ndarray) -> np.ndarray:
    """What the scores of responses of so many tokens may differ by, in nats."""
    always, of_a_token = TOLERANCE[precision]
    return np.asarray(always + of_a_token / np.sqrt(np.maximum(tokens, 1)))


def check_unscored(name: str, samples: int, reasons: Mapping[str, int], limit: float) -> None:
    """Raises UserError where more than this share of the samples are said to have no scores.

    reasons: the number of samples for each.
    """
    listed = ", ".join(f"{reason} {count:,}" for reason, count in sorted(reasons.items()))
    require(
        sum(reasons.values()) <= limit * samples,
        f"of the {samples:,} samples with published {name} scores, more than"
        f" data.max_reject_ratio={limit:g} could not be scored there ({listed}), so no score is"
        " taken over; score them here, or raise it if they may go",
    )


def compare_scores(name: str, pulled: pa.Table, here: pa.Table, precision: str) -> int:
    """How many samples both have, whose scores were computed here and there. Raises UserError where
    they differ by more than machines do in this precision, or one of them has none."""
    ids, others = id_array(pulled), id_array(here)
    both = ids[among(ids, np.sort(others))]
    order = np.argsort(others)
    rows = pulled.take(np.flatnonzero(among(ids, both)))
    same = here.take(order[np.searchsorted(others[order], both)])
    limits = tolerance(precision, rows["response_tokens"].to_numpy())
    for measure in pulled.schema.names[2:-1]:
        there, found = (t[measure].to_numpy(zero_copy_only=False) for t in (rows, same))
        with np.errstate(invalid="ignore"):
            differs = ~(np.abs(there - found) <= limits) & ~(np.isnan(there) & np.isnan(found))
        if differs.any():
            first = int(np.flatnonzero(differs)[0])
            raise UserError(
                f"the {name} scores of sample {both[first].decode()} are not those of this model:"
                f" {measure} is {there[first]:.6g} there and {found[first]:.6g} here, and"
                f" {limits[first]:.2g} is what machines may differ by"
            )
    return len(both)


def _mask(values: pa.ChunkedArray) -> np.ndarray:
    return np.asarray(values.to_numpy(), dtype=bool)


def _refuse(
    file: PublishedFile,
    table: pa.Table,
    wrong: np.ndarray,
    what: str,
    values: np.ndarray | None = None,
) -> None:
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        value = "" if values is None else f" ({values[row]:.6g})"
        raise UserError(f"{file.name}: sample {table['sample_id'][row].as_py()} {what}{value}")
