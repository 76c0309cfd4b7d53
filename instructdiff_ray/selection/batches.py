"""The pool's partitions, each with the scores of its samples, and what they are ranked by."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from instructdiff_ray.config.selection import SelectConfig
from instructdiff_ray.models.encoding import LIKELIHOOD
from instructdiff_ray.pool.pool import Pool
from instructdiff_ray.scoring.spec import ScoreTable
from instructdiff_ray.selection.budgets import Budget
from instructdiff_ray.selection.guards import GUARDS
from instructdiff_ray.selection.strategies import (
    CALIBRATED,
    Strategy,
    StrategyBatch,
    is_repeat,
    repeat_scores,
)

REJECTED = pa.schema([("sample_id", pa.string()), ("reason", pa.string()), ("detail", pa.string())])


@dataclass(frozen=True)
class RankingInputs:
    """What a pool is ranked by, besides its scores.

    select: a domain's name → its configuration; filter: as in SelectConfig, of all domains.
    seed, weights, order: as in StrategyBatch.
    repeats: numbers of the calibrations by the mean of whose scores is ranked.
    warmup: sorted ids of the warm-up subset, where some domain excludes it.
    guards: those whose values are wanted; the domains' configurations say which of them exclude.
    budgets: by domain, where they do not follow from the configurations.
    """

    strategy: Strategy
    select: Callable[[str], SelectConfig]
    filter: str = "nll"
    seed: int = 0
    weights: Sequence[float] = (1.0,)
    warmup: np.ndarray | None = None
    order: Mapping[str, int] = field(default_factory=dict)
    guards: tuple[str, ...] = ()
    repeats: tuple[int, ...] = (0,)
    budgets: Mapping[str, Budget] | None = None

    @property
    def measures(self) -> tuple[str, ...]:
        """The columns that tell why a sample met its fate; it is ranked by the last."""
        return ("delta_nll", "delta_entropy") if self.strategy.calibrates else ("value",)


def scored_batches(
    pool: Pool,
    scores: Mapping[str, ScoreTable],
    inputs: RankingInputs,
    of_index: list[str],
    of_scores: list[str],
) -> Iterator[StrategyBatch]:
    """Each partition of the pool with these columns of its index and of the scores, aligned; of the
    scores also their measures and the reason."""
    tables = [table.read([*of_scores, *table.measures, "reason"]) for table in scores.values()]
    for index, *scored in zip(pool.index(of_index), *tables, strict=True):
        named = dict(zip(scores, scored, strict=True))
        named = _mean_of_repeats(named, inputs.repeats)
        yield StrategyBatch(index, named, inputs.seed, inputs.weights, inputs.order)


def _mean_of_repeats(scores: dict[str, pa.Table], repeats: Sequence[int]) -> dict[str, pa.Table]:
    """The scores, those of the calibrated model as the mean over these of its repeats; a sample
    that any repeat could not score has none."""
    every = [name for name in scores if is_repeat(name)]
    if len(every) < 2:
        return scores
    mean = scores[CALIBRATED]
    for measure in LIKELIHOOD:
        columns = [scores[repeat_scores(r)][measure].to_numpy() for r in repeats]
        values = pa.array(np.mean(columns, axis=0), pa.float64(), from_pandas=True)
        mean = mean.set_column(mean.column_names.index(measure), measure, values)
    for column in {"reason", "detail"} & {*mean.column_names}:
        known = pc.coalesce(*(scores[name][column] for name in every))
        mean = mean.set_column(mean.column_names.index(column), column, known)
    return {**scores, CALIBRATED: mean}


def complete(batch: StrategyBatch, inputs: RankingInputs) -> StrategyBatch:
    """Those samples that have all the scores that the strategy needs."""
    reasons = _needed(batch, inputs, "reason")
    if not reasons:
        return batch
    good = pc.is_null(pc.coalesce(*reasons))
    kept = {name: table.filter(good) for name, table in batch.scores.items()}
    return replace(batch, index=batch.index.filter(good), scores=kept)


def _needed(batch: StrategyBatch, inputs: RankingInputs, column: str) -> list[pa.ChunkedArray]:
    """A column of the scores that the strategy needs: not of those at which only a guard looks."""
    of_guards = {name for guard in GUARDS.values() for name in guard.scores}
    optional = of_guards - {*inputs.strategy.scores}
    return [table[column] for name, table in batch.scores.items() if name not in optional]


def rejected_samples(
    pool: Pool, scores: Mapping[str, ScoreTable], inputs: RankingInputs
) -> pa.Table:
    """The samples without scores, with the reason, as REJECTED."""
    tables = []
    for batch in scored_batches(pool, scores, inputs, ["sample_id"], ["detail"]):
        reason, detail = (
            pc.coalesce(*_needed(batch, inputs, column)) for column in ("reason", "detail")
        )
        table = pa.table([batch.index["sample_id"], reason, detail], schema=REJECTED)
        tables.append(table.filter(pc.is_valid(reason)))
    return pa.concat_tables(tables)
