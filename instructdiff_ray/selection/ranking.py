"""The ranking: one row a sample with its scores, the value that it is ranked by, and its fate."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from instructdiff_ray.config.selection import SelectConfig
from instructdiff_ray.errors import UserError
from instructdiff_ray.models.encoding import LIKELIHOOD
from instructdiff_ray.pool.partition import id_array
from instructdiff_ray.pool.pool import Pool
from instructdiff_ray.scoring.spec import ScoreTable
from instructdiff_ray.selection.batches import (
    REJECTED,
    RankingInputs,
    complete,
    rejected_samples,
    scored_batches,
)
from instructdiff_ray.selection.budgets import NOTHING, Budget, domain_budgets, domain_sizes
from instructdiff_ray.selection.columns import EXCLUDED_BY, read_columns
from instructdiff_ray.selection.guards import GUARDS
from instructdiff_ray.selection.select import (
    EXCLUDED,
    FATES,
    SELECTED,
    Candidates,
    rows_of,
    select,
    take_within_budget,
)
from instructdiff_ray.selection.stability import Stability
from instructdiff_ray.selection.strategies import BASE, CALIBRATED

# The columns of `ranking.parquet`; null where the strategy does without. A baseline has one more,
# and so has each guard whose values were computed.
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
        ("excluded_by", pa.string()),
    ]
)
VALUE = pa.field("value", pa.float64())
# Of a ranking by the mean of several calibrations: the probability that a single one selects the
# sample, and the standard deviation of its ΔH over them.
PROBABILITY = pa.field("selection_probability", pa.float32())
DELTA_ENTROPY_STD = pa.field("delta_entropy_std", pa.float32())


@dataclass(frozen=True)
class Ranking:
    """A ranked pool.

    table: domain, response_tokens, `inputs.measures`, the guards' values, fate and excluded_by of
        each sample that has scores, in the order of sample_id, each column one chunk. Most of it is
        mapped from disk, so whoever reads it should copy no more than a column.
    rejected: rows of REJECTED, the samples that could not be scored.
    limits: domain → guard → the value above which it excludes.
    budgets: domain → what could be selected of it.
    stability: by domain, and of all under ""; only of a ranking by several calibrations.
    """

    pool: Pool
    scores: Mapping[str, ScoreTable]
    inputs: RankingInputs
    table: pa.Table
    rejected: pa.Table
    limits: Mapping[str, Mapping[str, float]]
    budgets: Mapping[str, Budget]
    stability: Mapping[str, Stability] = field(default_factory=dict)

    @property
    def schema(self) -> pa.Schema:
        """Of `ranking.parquet`."""
        measures = [pa.field(GUARDS[name].measure, pa.float64()) for name in self.inputs.guards]
        value = [] if self.inputs.strategy.calibrates else [VALUE]
        stability = [PROBABILITY, DELTA_ENTROPY_STD] if self.stability else []
        return pa.schema([*RANKING, *measures, *value, *stability])

    def has_fate(self, fate: str) -> np.ndarray:
        """A mask of the samples that met it."""
        return self.codes("fate")[0] == FATES.index(fate)

    def excluded_by(self, reasons: Collection[str]) -> np.ndarray:
        """A mask of the samples that any of these excluded."""
        codes, names = self.codes("excluded_by")
        return np.isin(codes, [names.index(reason) for reason in reasons])

    def codes(self, column: str) -> tuple[np.ndarray, list[str]]:
        """A column of names as their numbers in a list, −1 where there is none, and the list."""
        encoded = self.table[column].chunk(0)
        return encoded.indices.fill_null(-1).to_numpy(), encoded.dictionary.to_pylist()

    def by_domain(self) -> Iterator[tuple[str, np.ndarray]]:
        """Each domain that has samples, and a mask of its rows."""
        codes, names = self.codes("domain")
        for code, name in enumerate(names):
            if (rows := codes == code).any():
                yield name, rows

    def rows(self) -> Iterator[pa.Table]:
        """All columns, a partition at a time, in the order of sample_id."""
        start, ids = 0, ["sample_id"]
        for batch in scored_batches(self.pool, self.scores, self.inputs, ids, ids):
            scored_ids = [table["sample_id"] for table in batch.scores.values()]
            aligned = all(column.equals(batch.index["sample_id"]) for column in scored_ids)
            assert aligned, "scores of another pool"
            batch = complete(batch, self.inputs)
            narrow = self.table.slice(start, batch.index.num_rows)
            start += batch.index.num_rows
            columns = {"sample_id": batch.index["sample_id"]}
            for name in (BASE, CALIBRATED):
                for measure in LIKELIHOOD:
                    if name in batch.scores:
                        columns[f"{name}_{measure}"] = batch.scores[name][measure]
            columns.update({name: narrow[name] for name in narrow.column_names})
            nulls = pa.nulls(narrow.num_rows)
            typed = [columns.get(f.name, nulls).cast(f.type) for f in self.schema]
            yield pa.table(typed, schema=self.schema)


def rank(pool: Pool, scores: Mapping[str, ScoreTable], inputs: RankingInputs) -> Ranking:
    """Filter and rank the pool.

    scores: by name, all that the strategy and the guards need.
    Raises UserError where no sample has scores.
    """
    columns, domains = read_columns(pool, scores, inputs)
    if not len(columns["domain"]):
        raise UserError("no sample of the pool could be scored; see the rejects in storage/pieces")
    filter_values = None
    if inputs.strategy.calibrates:
        filter_values = columns.get("filter_value", columns["delta_nll"])
    configs = [inputs.select(name) for name in domains]
    budgets = inputs.budgets
    if budgets is None:
        sizes = domain_sizes(columns["domain"], columns["response_tokens"], len(domains))
        named = dict(zip(domains, configs, strict=True))
        budgets = domain_budgets(named, dict(zip(domains, sizes, strict=True)))
    limits = _exclude_guarded(columns, inputs.guards, configs)
    candidates = Candidates(
        columns["domain"],
        columns["response_tokens"],
        columns[inputs.measures[-1]],
        filter_values,
        columns["decided"],
    )
    in_order = [budgets.get(name, NOTHING) for name in domains]
    fates = select(candidates, inputs.strategy.end, configs, in_order)
    not_excluded = fates != FATES.index(EXCLUDED)
    table = pa.table(
        {
            "domain": pa.DictionaryArray.from_arrays(columns["domain"], domains),
            "response_tokens": columns["response_tokens"],
            **{name: columns[name] for name in inputs.measures},
            **{measure: columns[measure] for measure in _guard_measures(inputs)},
            "fate": pa.DictionaryArray.from_arrays(fates, list(FATES)),
            "excluded_by": pa.DictionaryArray.from_arrays(
                pa.array(columns["excluded_by"], mask=not_excluded), list(EXCLUDED_BY)
            ),
        }
    )
    all_scored = table.num_rows == len(pool)
    rejected = REJECTED.empty_table() if all_scored else rejected_samples(pool, scores, inputs)
    named_limits = dict(zip(domains, limits, strict=True))
    named_budgets = dict(zip(domains, in_order, strict=True))
    return Ranking(pool, scores, inputs, table, rejected, named_limits, named_budgets)


def order_within_budgets(
    samples: pa.Table,
    order: Callable[[Sequence[bytes]], Iterator[int]],
    budgets: Mapping[str, Budget],
) -> dict[str, int]:
    """The place of each sample in a strategy's order of its domain, as far as the budget goes.

    samples: sample_id, domain, response_tokens and text of the whole pool, in the order of
        sample_id; budgets: of each domain.
    """
    domains, ids = samples["domain"].to_numpy(), samples["sample_id"].to_pylist()
    tokens, texts = samples["response_tokens"].to_numpy(), samples["text"].to_pylist()
    places: dict[str, int] = {}
    for domain in np.unique(domains):
        rows = np.flatnonzero(domains == domain)
        positions = order([texts[row].encode() for row in rows])
        taken = take_within_budget(positions, tokens[rows], budgets.get(domain, NOTHING))
        for place, position in enumerate(taken):
            places.setdefault(ids[rows[position]], place)
    return places


def _exclude_guarded(
    columns: dict[str, np.ndarray], guards: Sequence[str], configs: Sequence[SelectConfig]
) -> list[dict[str, float]]:
    """Marks in `decided` and `excluded_by` what each domain's guards exclude; gives the limits of
    all guards by domain number."""
    limits: list[dict[str, float]] = []
    for domain, config in enumerate(configs):
        rows = rows_of(columns["domain"], domain, len(configs))
        decided, excluded_by = columns["decided"][rows], columns["excluded_by"][rows]
        limits.append({})
        for name in guards:
            values = columns[GUARDS[name].measure][rows]
            limit = GUARDS[name].limit(values[~np.isnan(values)])
            limits[domain][name] = limit
            if name in config.guards:
                # Of several reasons the first is kept; what is not known is not above a limit.
                guarded = (values > limit) & (decided < 0)
                decided[guarded] = FATES.index(EXCLUDED)
                excluded_by[guarded] = EXCLUDED_BY.index(name)
        columns["decided"][rows], columns["excluded_by"][rows] = decided, excluded_by
    return limits


def _guard_measures(inputs: RankingInputs) -> list[str]:
    return [GUARDS[name].measure for name in inputs.guards]


def selected_ids(ranking: Ranking) -> list[str]:
    """The selection's sample ids, sorted."""
    return [sample_id.decode() for sample_id in selected_id_array(ranking).tolist()]


def selected_id_array(ranking: Ranking) -> np.ndarray:
    """The same as fixed-width bytes: ten million take a third of a gigabyte, strings take one."""
    chosen = pa.array(ranking.has_fate(SELECTED))
    ids, start = [], 0
    for index in ranking.pool.index(["sample_id"]):
        if ranking.rejected.num_rows:
            unscored = pc.is_in(index["sample_id"], value_set=ranking.rejected["sample_id"])
            index = index.filter(pc.invert(unscored))
        ids.append(id_array(index.filter(chosen.slice(start, index.num_rows))))
        start += index.num_rows
    return np.concatenate(ids)
