"""The ranking: one row a sample with its scores, the value that it is ranked by, and its fate."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from instructdiff_ray.config.selection import SelectConfig
from instructdiff_ray.errors import UserError
from instructdiff_ray.models.encoding import LIKELIHOOD
from instructdiff_ray.pool.partition import among, id_array
from instructdiff_ray.pool.pool import Pool
from instructdiff_ray.scoring.spec import ScoreTable
from instructdiff_ray.selection.batches import (
    REJECTED,
    RankingInputs,
    complete,
    rejected_samples,
    scored_batches,
)
from instructdiff_ray.selection.guards import GUARDS
from instructdiff_ray.selection.select import (
    EXCLUDED,
    FATES,
    SELECTED,
    Candidates,
    select,
    take_within_budget,
)
from instructdiff_ray.selection.stability import Stability
from instructdiff_ray.selection.strategies import (
    BASE,
    CALIBRATED,
    StrategyBatch,
    delta_entropy,
    delta_nll,
    delta_ppl,
)

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
# What excludes a sample: the strategy's own rule, an option, or a guard.
STRATEGY, WARMUP = "strategy", "warmup"
EXCLUDED_BY = (STRATEGY, WARMUP, *GUARDS)


@dataclass(frozen=True)
class Ranking:
    """A ranked pool.

    table: domain, response_tokens, `inputs.measures`, the guards' values, fate and excluded_by of
        each sample that has scores, in the order of sample_id: all that the driver holds of it.
    rejected: rows of REJECTED, the samples that could not be scored.
    limits: domain → guard → the value above which it excludes.
    stability: by domain, and of all under ""; only of a ranking by several calibrations.
    """

    pool: Pool
    scores: Mapping[str, ScoreTable]
    inputs: RankingInputs
    table: pa.Table
    rejected: pa.Table
    limits: Mapping[str, Mapping[str, float]]
    stability: Mapping[str, Stability] = field(default_factory=dict)

    @property
    def schema(self) -> pa.Schema:
        """Of `ranking.parquet`."""
        measures = [pa.field(GUARDS[name].measure, pa.float64()) for name in self.inputs.guards]
        value = [] if self.inputs.strategy.calibrates else [VALUE]
        stability = [PROBABILITY, DELTA_ENTROPY_STD] if self.stability else []
        return pa.schema([*RANKING, *measures, *value, *stability])

    @property
    def fates(self) -> pa.Array:
        return self.table["fate"].combine_chunks()

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
    domains: dict[str, int] = {}
    columns = _columns(pool, scores, inputs, domains)
    if not len(columns["domain"]):
        raise UserError("no sample of the pool could be scored; see the rejects in storage/pieces")
    filter_values = None
    if inputs.strategy.calibrates:
        filter_values = columns.get("filter_value", columns["delta_nll"])
    configs = [inputs.select(name) for name in domains]
    limits = _exclude_guarded(columns, inputs.guards, configs)
    candidates = Candidates(
        columns["domain"],
        columns["response_tokens"],
        columns[inputs.measures[-1]],
        filter_values,
        columns["decided"],
    )
    fates = select(candidates, inputs.strategy.end, configs)
    excluded = fates == FATES.index(EXCLUDED)
    table = pa.table(
        {
            "domain": pa.DictionaryArray.from_arrays(columns["domain"], list(domains)),
            "response_tokens": columns["response_tokens"],
            **{name: columns[name] for name in inputs.measures},
            **{measure: columns[measure] for measure in _guard_measures(inputs)},
            "fate": pa.DictionaryArray.from_arrays(fates, list(FATES)),
            "excluded_by": pa.DictionaryArray.from_arrays(
                pa.array(columns["excluded_by"], mask=~excluded), list(EXCLUDED_BY)
            ),
        }
    )
    all_scored = table.num_rows == len(pool)
    rejected = REJECTED.empty_table() if all_scored else rejected_samples(pool, scores, inputs)
    return Ranking(pool, scores, inputs, table, rejected, dict(zip(domains, limits, strict=True)))


def order_within_budgets(
    samples: pa.Table,
    order: Callable[[Sequence[bytes]], Iterator[int]],
    select: Callable[[str], SelectConfig],
) -> dict[str, int]:
    """The place of each sample in a strategy's order of its domain, as far as the budget goes.

    samples: sample_id, domain, response_tokens and text of the whole pool, in the order of
        sample_id; select: a domain's name → its configuration.
    """
    domains, ids = samples["domain"].to_numpy(), samples["sample_id"].to_pylist()
    tokens, texts = samples["response_tokens"].to_numpy(), samples["text"].to_pylist()
    places: dict[str, int] = {}
    for domain in np.unique(domains):
        rows = np.flatnonzero(domains == domain)
        positions = order([texts[row].encode() for row in rows])
        for place, position in enumerate(
            take_within_budget(positions, tokens[rows], select(domain))
        ):
            places.setdefault(ids[rows[position]], place)
    return places


def _columns(
    pool: Pool,
    scores: Mapping[str, ScoreTable],
    inputs: RankingInputs,
    domains: dict[str, int],
) -> dict[str, np.ndarray]:
    """What samples are selected by, a column each, in the order of sample_id; those without scores
    are left out. `domains` takes in the domains' numbers."""
    columns: dict[str, np.ndarray] = {}
    end = 0
    for batch in scored_batches(pool, scores, inputs, _index_columns(inputs), []):
        batch = complete(batch, inputs)
        start, end = end, end + batch.index.num_rows
        for name, values in _batch_columns(batch, inputs, domains).items():
            # Filled in place: at a hundred million samples a second copy would be felt.
            if name not in columns:
                columns[name] = np.empty(len(pool), values.dtype)
            columns[name][start:end] = values
    return {name: values[:end] for name, values in columns.items()}


def _batch_columns(
    batch: StrategyBatch, inputs: RankingInputs, domains: dict[str, int]
) -> dict[str, np.ndarray]:
    numbers, values = _domain_numbers(batch.index, domains), _values(batch, inputs)
    configs = [inputs.select(name) for name in domains]
    decided, excluded_by = _decided(batch, values[inputs.measures[-1]], inputs, configs, numbers)
    return {
        "domain": numbers,
        "response_tokens": batch.index["response_tokens"].to_numpy(),
        **values,
        **{GUARDS[name].measure: GUARDS[name].value(batch) for name in inputs.guards},
        "decided": decided,
        "excluded_by": excluded_by,
    }


def _guard_measures(inputs: RankingInputs) -> list[str]:
    return [GUARDS[name].measure for name in inputs.guards]


def _domain_numbers(index: pa.Table, domains: dict[str, int]) -> np.ndarray:
    """Each row's domain as its number in `domains`, which takes in new ones."""
    column = index["domain"].combine_chunks()
    numbers = [domains.setdefault(name, len(domains)) for name in column.dictionary.to_pylist()]
    return np.array(numbers, np.int32)[column.indices.to_numpy()]


def _index_columns(inputs: RankingInputs) -> list[str]:
    """Not the ids, if they are not needed: they are most of the bytes, and the order is the same
    by construction."""
    columns = ["domain", "response_tokens"]
    if inputs.strategy.calibrates:
        return columns if inputs.warmup is None else ["sample_id", *columns]
    return ["sample_id", *columns, "instruction_tokens"]


def _values(batch: StrategyBatch, inputs: RankingInputs) -> dict[str, np.ndarray]:
    """`inputs.measures`, and `filter_value` where the filter cuts by something else than ΔNLL."""
    if not inputs.strategy.calibrates:
        return {"value": inputs.strategy.value(batch)}
    values = {"delta_nll": delta_nll(batch), "delta_entropy": delta_entropy(batch)}
    return values if inputs.filter == "nll" else {**values, "filter_value": delta_ppl(batch)}


def _decided(
    batch: StrategyBatch,
    values: np.ndarray,
    inputs: RankingInputs,
    configs: Sequence[SelectConfig],
    domains: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """The fates of samples that are never selected, and what excludes them, as numbers in FATES and
    EXCLUDED_BY: by the strategy's own rule or as part of the warm-up subset; −1 for all others."""
    decided, excluded_by = (np.full(len(domains), -1, np.int8) for _ in range(2))
    if inputs.strategy.below is not None:
        never = ~(values < inputs.strategy.below)
        decided[never] = FATES.index(inputs.strategy.never_selected)
        excluded_by[never] = EXCLUDED_BY.index(STRATEGY)
    if inputs.warmup is not None:
        wanted = np.array([config.exclude_warmup for config in configs], bool)[domains]
        in_warmup = wanted & among(id_array(batch.index), inputs.warmup)
        decided[in_warmup] = FATES.index(EXCLUDED)
        excluded_by[in_warmup] = EXCLUDED_BY.index(WARMUP)
    return decided, excluded_by


def _exclude_guarded(
    columns: dict[str, np.ndarray], guards: Sequence[str], configs: Sequence[SelectConfig]
) -> list[dict[str, float]]:
    """Marks in `decided` and `excluded_by` what each domain's guards exclude; gives the limits of
    all guards by domain number."""
    limits: list[dict[str, float]] = []
    for domain, config in enumerate(configs):
        rows = np.flatnonzero(columns["domain"] == domain)
        limits.append({})
        for name in guards:
            values = columns[GUARDS[name].measure][rows]
            limit = GUARDS[name].limit(values[~np.isnan(values)])
            limits[domain][name] = limit
            if name in config.guards:
                # Of several reasons the first is kept; what is not known is not above a limit.
                guarded = rows[(values > limit) & (columns["decided"][rows] < 0)]
                columns["decided"][guarded] = FATES.index(EXCLUDED)
                columns["excluded_by"][guarded] = EXCLUDED_BY.index(name)
    return limits


def selected_ids(ranking: Ranking) -> list[str]:
    """The selection's sample ids, sorted."""
    return [sample_id.decode() for sample_id in selected_id_array(ranking).tolist()]


def selected_id_array(ranking: Ranking) -> np.ndarray:
    """The same as fixed-width bytes: ten million take a third of a gigabyte, strings take one."""
    chosen = pc.equal(ranking.fates, SELECTED)
    ids, start = [], 0
    for index in ranking.pool.index(["sample_id"]):
        if ranking.rejected.num_rows:
            unscored = pc.is_in(index["sample_id"], value_set=ranking.rejected["sample_id"])
            index = index.filter(pc.invert(unscored))
        ids.append(id_array(index.filter(chosen.slice(start, index.num_rows))))
        start += index.num_rows
    return np.concatenate(ids)
