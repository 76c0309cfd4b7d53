"""The ranking: one row a sample with its scores, the value that it is ranked by, and its fate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from instructdiff_ray.config.selection import SelectConfig
from instructdiff_ray.errors import UserError
from instructdiff_ray.models.encoding import LIKELIHOOD
from instructdiff_ray.pool.partition import id_array
from instructdiff_ray.pool.pool import Pool, among
from instructdiff_ray.scoring.store import SCORES
from instructdiff_ray.selection.select import (
    ABOVE,
    BELOW,
    EXCLUDED,
    FATES,
    NOT_TOP,
    SELECTED,
    Measured,
    select,
)
from instructdiff_ray.selection.strategies import (
    ALONE,
    BASE,
    CALIBRATED,
    RATING,
    Bucket,
    Strategy,
    delta_entropy,
    delta_nll,
    delta_ppl,
    ifd,
)
from instructdiff_ray.storage.artifacts import Finished

QUANTILES = (5, 25, 50, 75, 95)
# The columns of `ranking.parquet`; null where the strategy does without. A baseline has one more.
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
VALUE = pa.field("value", pa.float64())
REJECTED = pa.schema([("sample_id", pa.string()), ("reason", pa.string()), ("detail", pa.string())])


@dataclass(frozen=True)
class Criteria:
    """What a pool is ranked by.

    select: a domain's name → its configuration; filter: as in SelectConfig, of all domains; seed,
    weights: as in Bucket; warmup: sorted ids of the warm-up subset, where some domain excludes it;
    picks: a sample's place in ZIP's order.
    """

    strategy: Strategy
    select: Callable[[str], SelectConfig]
    filter: str = "nll"
    seed: int = 0
    weights: Sequence[float] = (1.0,)
    warmup: np.ndarray | None = None
    picks: Mapping[str, int] | None = None

    @property
    def measures(self) -> tuple[str, ...]:
        """The columns that tell why a sample met its fate."""
        return ("delta_nll", "delta_entropy") if self.strategy.calibrates else ("value",)


@dataclass(frozen=True)
class Ranking:
    """A ranked pool.

    table: domain, response_tokens, `criteria.measures` and fate of each sample that has scores, in
        the order of sample_id: all that the driver holds of it.
    rejected: rows of REJECTED, the samples that could not be scored.
    """

    pool: Pool
    scores: Mapping[str, Finished]
    criteria: Criteria
    table: pa.Table
    rejected: pa.Table

    @property
    def schema(self) -> pa.Schema:
        """Of `ranking.parquet`."""
        return RANKING if self.criteria.strategy.calibrates else RANKING.append(VALUE)

    def rows(self) -> Iterator[pa.Table]:
        """All columns, a bucket at a time, in the order of sample_id."""
        start, ids = 0, ["sample_id"]
        for bucket in _buckets(self.pool, self.scores, self.criteria, ids, ids):
            same = [
                s["sample_id"].equals(bucket.index["sample_id"]) for s in bucket.scores.values()
            ]
            assert all(same), "scores of another pool"
            bucket = _complete(bucket, self.criteria)
            narrow = self.table.slice(start, bucket.index.num_rows)
            start += bucket.index.num_rows
            columns = {"sample_id": bucket.index["sample_id"]}
            for role in (BASE, CALIBRATED):
                for measure in LIKELIHOOD:
                    if role in bucket.scores:
                        columns[f"{role}_{measure}"] = bucket.scores[role][measure]
            columns.update({name: narrow[name] for name in narrow.column_names})
            nothing = pa.nulls(narrow.num_rows)
            casted = [columns.get(f.name, nothing).cast(f.type) for f in self.schema]
            yield pa.table(casted, schema=self.schema)


def rank(pool: Pool, scores: Mapping[str, Finished], criteria: Criteria) -> Ranking:
    """Filter and rank the pool.

    scores: by role, all that the strategy needs, and of ALONE where mismatched pairs are excluded.
    Raises UserError where no sample has scores.
    """
    count = len(pool)
    columns: dict[str, np.ndarray] = {}
    domains, tokens = np.empty(count, np.int32), np.empty(count, np.int32)
    barred = np.zeros(count, bool)
    names: dict[str, int] = {}
    configs: list[SelectConfig] = []
    end = 0
    for bucket in _buckets(pool, scores, criteria, _index_columns(criteria), []):
        bucket = _complete(bucket, criteria)
        start, end = end, end + bucket.index.num_rows
        domains[start:end] = _domain_numbers(bucket.index, names)
        configs += [criteria.select(name) for name in list(names)[len(configs) :]]
        tokens[start:end] = bucket.index["response_tokens"]
        for name, values in _values(bucket, criteria).items():
            columns.setdefault(name, np.empty(count))[start:end] = values
        barred[start:end] = _barred(bucket, criteria, configs, domains[start:end])
    if not end:
        raise UserError("no sample of the pool could be scored; see the rejects in storage/pieces")
    columns = {name: values[:end] for name, values in columns.items()}
    domains, tokens, barred = domains[:end], tokens[:end], barred[:end]
    shift, value = None, columns[criteria.measures[-1]]
    if criteria.strategy.calibrates:
        shift = columns.get("shift", columns["delta_nll"])
    if criteria.strategy.below is not None or criteria.picks is not None:
        limit = np.inf if criteria.strategy.below is None else criteria.strategy.below
        barred |= ~(value < limit)
        value = np.where(barred, 0.0, value)  # what is barred may have no finite one
    measured = Measured(domains, tokens, value, shift, barred if barred.any() else None)
    fates = select(measured, criteria.strategy.end, configs)
    if criteria.picks is not None:  # what was not picked is not barred, but not in the top either
        fates[fates == FATES.index(EXCLUDED)] = FATES.index(NOT_TOP)
    table = pa.table(
        {
            "domain": pa.DictionaryArray.from_arrays(domains, list(names)),
            "response_tokens": tokens,
            **{name: columns[name] for name in criteria.measures},
            "fate": pa.DictionaryArray.from_arrays(fates, list(FATES)),
        }
    )
    rejected = REJECTED.empty_table() if end == count else _rejected(pool, scores, criteria)
    return Ranking(pool, scores, criteria, table, rejected)


def _domain_numbers(index: pa.Table, names: dict[str, int]) -> np.ndarray:
    """Each row's domain as its number in `names`, which takes in new ones."""
    column = index["domain"].combine_chunks()
    numbers = [names.setdefault(name, len(names)) for name in column.dictionary.to_pylist()]
    return np.array(numbers, np.int32)[column.indices.to_numpy()]


def _index_columns(criteria: Criteria) -> list[str]:
    """Not the ids, if they are not needed: they are most of the bytes, and the order is the same
    by construction."""
    columns = ["domain", "response_tokens"]
    if criteria.strategy.calibrates:
        return columns if criteria.warmup is None else ["sample_id", *columns]
    return ["sample_id", *columns, "instruction_tokens"]


def _values(bucket: Bucket, criteria: Criteria) -> dict[str, np.ndarray]:
    """`criteria.measures`, and `shift` where the filter cuts by something else than ΔNLL."""
    strategy = criteria.strategy
    if strategy.value is None:
        assert criteria.picks is not None
        ids = bucket.index["sample_id"].to_pylist()
        return {"value": np.array([criteria.picks.get(i, np.inf) for i in ids], dtype=float)}
    if not strategy.calibrates:
        return {"value": strategy.value(bucket)}
    values = {"delta_nll": delta_nll(bucket), "delta_entropy": delta_entropy(bucket)}
    return values if criteria.filter == "nll" else {**values, "shift": delta_ppl(bucket)}


def _barred(
    bucket: Bucket, criteria: Criteria, configs: Sequence[SelectConfig], domains: np.ndarray
) -> np.ndarray:
    """What an option excludes from selection."""
    barred = np.zeros(len(domains), bool)
    if criteria.warmup is not None:
        wanted = np.array([config.exclude_warmup for config in configs], bool)[domains]
        barred |= wanted & among(id_array(bucket.index), criteria.warmup)
    wanted = np.array([config.exclude_mismatched for config in configs], bool)[domains]
    if wanted.any():
        # A response that can't be scored alone stays: nothing is known against it.
        unknown = bucket.scores[ALONE]["reason"].is_valid().to_numpy()
        barred |= wanted & ~unknown & (ifd(bucket) >= 1)
    return barred


def _buckets(
    pool: Pool,
    scores: Mapping[str, Finished],
    criteria: Criteria,
    of_index: list[str],
    of_scores: list[str],
) -> Iterator[Bucket]:
    """Each bucket of the pool with these columns of its index and of the scores, aligned; of the
    scores also their measures and the reason."""
    tables = []
    for role, finished in scores.items():
        measures = (RATING,) if role.startswith(RATING) else LIKELIHOOD
        columns = [*of_scores, *measures, "reason"]
        tables.append(finished.folder.read_row_groups(SCORES, columns))
    for index, *found in zip(pool.index(of_index), *tables, strict=True):
        yield Bucket(index, dict(zip(scores, found, strict=True)), criteria.seed, criteria.weights)


def _complete(bucket: Bucket, criteria: Criteria) -> Bucket:
    """Those samples that have all the scores that the strategy needs."""
    reasons = _needed(bucket, criteria, "reason")
    if not reasons:
        return bucket
    good = pc.is_null(pc.coalesce(*reasons))
    kept = {role: table.filter(good) for role, table in bucket.scores.items()}
    return replace(bucket, index=bucket.index.filter(good), scores=kept)


def _needed(bucket: Bucket, criteria: Criteria, column: str) -> list[pa.ChunkedArray]:
    """A column of the roles that the strategy needs: not of ALONE, where only an option looks."""
    optional = ALONE not in criteria.strategy.roles
    return [t[column] for role, t in bucket.scores.items() if not (optional and role == ALONE)]


def _rejected(pool: Pool, scores: Mapping[str, Finished], criteria: Criteria) -> pa.Table:
    """The samples without scores, with the reason, as REJECTED."""
    found = []
    for bucket in _buckets(pool, scores, criteria, ["sample_id"], ["detail"]):
        reason, detail = (
            pc.coalesce(*_needed(bucket, criteria, column)) for column in ("reason", "detail")
        )
        table = pa.table([bucket.index["sample_id"], reason, detail], schema=REJECTED)
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
    """Samples below, above and in the learnable band, and selected; of a baseline all are in it."""
    counted = Counter(
        {v["values"]: v["counts"] for v in pc.value_counts(_fates(ranking)).to_pylist()}
    )
    return {
        "below_band": counted[BELOW],
        "above_band": counted[ABOVE],
        "in_band": counted[NOT_TOP] + counted[SELECTED] + counted[EXCLUDED],
        **({"excluded": counted[EXCLUDED]} if counted[EXCLUDED] else {}),
        "selected": counted[SELECTED],
    }


def token_counts(ranking: Ranking) -> dict[str, int]:
    """Response tokens of the pool and of the selection."""
    tokens = ranking.table["response_tokens"]
    chosen = tokens.filter(pc.equal(ranking.table["fate"].cast(pa.string()), SELECTED))
    return {
        "response_tokens": pc.sum(tokens).as_py(),
        "selected_response_tokens": pc.sum(chosen).as_py() or 0,
    }


def scored_counts(ranking: Ranking) -> dict[str, Any]:
    """`rejected` and `pool`, where samples that could not be scored count as the former."""
    counts = ranking.pool.counts
    rejected = Counter(counts["rejected"]) + Counter(ranking.rejected["reason"].to_pylist())
    return {"rejected": dict(sorted(rejected.items())), "pool": ranking.table.num_rows}


def by_domain(ranking: Ranking) -> dict[str, dict[str, Any]]:
    """For each domain: samples, how many are selected, their response tokens, and quantiles of ΔNLL
    and ΔH (nats) or of a baseline's value."""
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
                    for column in ranking.criteria.measures
                },
            }
    return table


def _fates(ranking: Ranking) -> pa.Array:
    return ranking.table["fate"].combine_chunks()


def _quantiles(values: np.ndarray) -> dict[str, float | None]:
    """Of those that are finite; None where none is."""
    known = values[np.isfinite(values)]
    if not len(known):
        return {f"p{q:02d}": None for q in QUANTILES}
    points = np.percentile(known, QUANTILES)
    return {f"p{q:02d}": float(point) for q, point in zip(QUANTILES, points, strict=True)}
