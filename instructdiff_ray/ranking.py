"""The ranking: one row a sample with its scores under both models and its fate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from instructdiff_ray.config import SelectConfig
from instructdiff_ray.errors import UserError
from instructdiff_ray.pieces import SCORES
from instructdiff_ray.pool import Pool
from instructdiff_ray.select import ABOVE, BELOW, FATES, NOT_TOP, SELECTED, select
from instructdiff_ray.storage import Finished

QUANTILES = (5, 25, 50, 75, 95)
# The columns of `ranking.parquet`.
RANKING = pa.schema(
    [
        ("sample_id", pa.string()),
        ("domain", pa.string()),
        ("response_tokens", pa.int32()),
        ("base_nll", pa.float64()),
        ("base_entropy", pa.float64()),
        ("calibrated_nll", pa.float64()),
        ("calibrated_entropy", pa.float64()),
        ("delta_nll", pa.float64()),
        ("delta_entropy", pa.float64()),
        ("fate", pa.string()),
    ]
)
REJECTED = pa.schema([("sample_id", pa.string()), ("reason", pa.string()), ("detail", pa.string())])


@dataclass(frozen=True)
class Ranking:
    """A ranked pool.

    table: domain, response_tokens, delta_nll, delta_entropy (nats) and fate of each sample that has
        scores, in the order of sample_id: all that the driver holds of it.
    rejected: rows of REJECTED, the samples that could not be scored.
    """

    pool: Pool
    scores: Mapping[str, Finished]
    table: pa.Table
    rejected: pa.Table

    def rows(self) -> Iterator[pa.Table]:
        """All columns of RANKING, a bucket at a time, in the order of sample_id."""
        start = 0
        ids = ["sample_id"]
        for index, base, calibrated in _buckets(self.pool, self.scores, ids, ids):
            assert base["sample_id"].equals(index["sample_id"]), "scores of another pool"
            assert calibrated["sample_id"].equals(index["sample_id"]), "scores of another pool"
            good = _has_scores(base, calibrated)
            index, base, calibrated = (t.filter(good) for t in (index, base, calibrated))
            narrow = self.table.slice(start, index.num_rows)
            start += index.num_rows
            columns = [index["sample_id"], narrow["domain"], narrow["response_tokens"]]
            columns += [base["nll"], base["entropy"], calibrated["nll"], calibrated["entropy"]]
            columns += [narrow["delta_nll"], narrow["delta_entropy"], narrow["fate"]]
            casted = [c.cast(f.type) for c, f in zip(columns, RANKING, strict=True)]
            yield pa.table(casted, schema=RANKING)


def rank(pool: Pool, scores: Mapping[str, Finished], config: SelectConfig) -> Ranking:
    """Filter and rank the pool.

    scores: of `base` and `calibrated`. delta_nll = calibrated − base (Eq. 1), delta_entropy = base
    − calibrated (Eq. 2). Raises UserError where no sample has scores.
    """
    count = len(pool)
    deltas = {name: np.empty(count) for name in ("delta_nll", "delta_entropy")}
    domains, tokens = np.empty(count, np.int32), np.empty(count, np.int32)
    names: dict[str, int] = {}
    end = 0
    # Not the ids: they are most of the bytes, and the order is the same by construction.
    for index, base, calibrated in _buckets(pool, scores, ["domain", "response_tokens"], []):
        good = _has_scores(base, calibrated)
        index, base, calibrated = (table.filter(good) for table in (index, base, calibrated))
        start, end = end, end + index.num_rows
        domains[start:end] = _domain_numbers(index, names)
        tokens[start:end] = index["response_tokens"]
        deltas["delta_nll"][start:end] = pc.subtract(calibrated["nll"], base["nll"])
        deltas["delta_entropy"][start:end] = pc.subtract(base["entropy"], calibrated["entropy"])
    if not end:
        raise UserError("no sample of the pool could be scored; see the rejects in storage/pieces")
    nll, entropy = (values[:end] for values in deltas.values())
    fates = select(domains[:end], nll, entropy, config)
    table = pa.table(
        {
            "domain": pa.DictionaryArray.from_arrays(domains[:end], list(names)),
            "response_tokens": tokens[:end],
            "delta_nll": nll,
            "delta_entropy": entropy,
            "fate": pa.DictionaryArray.from_arrays(fates, list(FATES)),
        }
    )
    rejected = REJECTED.empty_table() if end == count else _rejected(pool, scores)
    return Ranking(pool, scores, table, rejected)


def _domain_numbers(index: pa.Table, names: dict[str, int]) -> np.ndarray:
    """Each row's domain as its number in `names`, which takes in new ones."""
    column = index["domain"].combine_chunks()
    numbers = [names.setdefault(name, len(names)) for name in column.dictionary.to_pylist()]
    return np.array(numbers, np.int32)[column.indices.to_numpy()]


def _buckets(
    pool: Pool, scores: Mapping[str, Finished], of_index: list[str], of_scores: list[str]
) -> Iterator[tuple[pa.Table, pa.Table, pa.Table]]:
    """Index, base and calibrated scores of each bucket, aligned; with these columns of each, and
    NLL, entropy and reason of the scores."""
    columns = [*of_scores, "nll", "entropy", "reason"]
    base, calibrated = (
        scores[role].folder.read_row_groups(SCORES, columns) for role in ("base", "calibrated")
    )
    return zip(pool.index(of_index), base, calibrated, strict=True)


def _has_scores(base: pa.Table, calibrated: pa.Table) -> pa.Array:
    return pc.is_null(pc.coalesce(base["reason"], calibrated["reason"]))


def _rejected(pool: Pool, scores: Mapping[str, Finished]) -> pa.Table:
    """The samples without scores, with the reason, as REJECTED."""
    found = []
    for index, base, calibrated in _buckets(pool, scores, ["sample_id"], ["detail"]):
        reason = pc.coalesce(base["reason"], calibrated["reason"])
        detail = pc.coalesce(base["detail"], calibrated["detail"])
        table = pa.table([index["sample_id"], reason, detail], schema=REJECTED)
        found.append(table.filter(pc.is_valid(reason)))
    return pa.concat_tables(found)


def selected_ids(ranking: Ranking) -> list[str]:
    """The selection's sample ids, sorted."""
    chosen = pc.equal(_fates(ranking), SELECTED)
    ids, start = [], 0
    for index in ranking.pool.index(["sample_id"]):
        names = index["sample_id"]
        if ranking.rejected.num_rows:
            lost = pc.is_in(names, value_set=ranking.rejected["sample_id"])
            names = names.filter(pc.invert(lost))
        ids += names.filter(chosen.slice(start, len(names))).to_pylist()
        start += len(names)
    return ids


def fate_counts(ranking: Ranking) -> dict[str, int]:
    """Samples below, above and in the learnable band, and selected."""
    counted = Counter(
        {v["values"]: v["counts"] for v in pc.value_counts(_fates(ranking)).to_pylist()}
    )
    return {
        "below_band": counted[BELOW],
        "above_band": counted[ABOVE],
        "in_band": counted[NOT_TOP] + counted[SELECTED],
        "selected": counted[SELECTED],
    }


def scored_counts(ranking: Ranking) -> dict[str, Any]:
    """`rejected` and `pool`, where samples that could not be scored count as the former."""
    counts = ranking.pool.counts
    rejected = Counter(counts["rejected"]) + Counter(ranking.rejected["reason"].to_pylist())
    return {"rejected": dict(sorted(rejected.items())), "pool": ranking.table.num_rows}


def by_domain(ranking: Ranking) -> dict[str, dict[str, Any]]:
    """For each domain: samples, how many are selected, quantiles of ΔNLL and ΔH (nats)."""
    domain = ranking.table["domain"].combine_chunks()
    codes = domain.indices.to_numpy()
    selected = pc.equal(_fates(ranking), SELECTED).to_numpy(zero_copy_only=False)
    table = {}
    for code, name in sorted(enumerate(domain.dictionary.to_pylist()), key=lambda item: item[1]):
        rows = codes == code
        if rows.any():
            table[name] = {
                "pool": int(rows.sum()),
                "selected": int(selected[rows].sum()),
                **{
                    column: _quantiles(ranking.table[column].to_numpy()[rows])
                    for column in ("delta_nll", "delta_entropy")
                },
            }
    return table


def _fates(ranking: Ranking) -> pa.Array:
    return ranking.table["fate"].combine_chunks()


def _quantiles(values: np.ndarray) -> dict[str, float]:
    points = np.percentile(values, QUANTILES)
    return {f"p{q:02d}": float(point) for q, point in zip(QUANTILES, points, strict=True)}
