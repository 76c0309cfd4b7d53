"""What each arm of an evaluation trains on, and what it costs to select that.

The first strategy selects as it is configured. Of each domain, the others then give as many samples
as it has selected, and once more as many response tokens, in the order of their own ranking: who is
given longer responses learns more from as many samples, so neither alone is a fair comparison.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from instructdiff_ray.config.run import Config
from instructdiff_ray.config.training import FULL
from instructdiff_ray.context import RunContext
from instructdiff_ray.pipeline import draw_warmup, rank_pool, run_rounds, selected_samples
from instructdiff_ray.pool.partition import among, id_array
from instructdiff_ray.pool.pool import Pool
from instructdiff_ray.scoring.plan import length_column
from instructdiff_ray.selection.budgets import SAMPLES, TOKENS, Budget, Size
from instructdiff_ray.selection.ranking import Ranking, selected_ids
from instructdiff_ray.selection.requirements import arm_strategies, required_scores
from instructdiff_ray.selection.select import SELECTED

# What arms have in common when they are compared; as in `select.budget`.
MATCHINGS = (SAMPLES, TOKENS)


@dataclass(frozen=True)
class SelectingCost:
    """What a selection costs from nothing, in tokens of prompts and responses.

    trained: by calibration, each epoch's; read: by the name of the scores.
    seconds: that this command has spent; none of what was in storage.
    """

    trained: int = 0
    read: Mapping[str, int] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True)
class TrainingSet:
    """What one model is trained on.

    matchings: the comparisons in which it stands; both where as many samples and as many response
        tokens are the same samples.
    """

    arm: str
    matchings: Sequence[str]
    ids: list[str]
    cost: SelectingCost


def training_sets(context: RunContext, pool: Pool) -> list[TrainingSet]:
    """What the arms train on, in their order. Computes what is missing of their scores."""
    contexts = {name: context.with_strategy(name) for name in arm_strategies(context.config)}
    # All before any is trained on: one that selects nothing is known by then.
    selected = {name: _select(of_arm, pool) for name, of_arm in contexts.items()}
    (first, (reference, _)) = next(iter(selected.items()))
    sizes = _selected_sizes(reference)
    sets = []
    for arm in context.config.arms():
        if arm == FULL:
            sets.append(TrainingSet(FULL, MATCHINGS, list(pool.ids()), SelectingCost()))
            continue
        ranking, cost = selected[arm]
        if arm == first:
            sets.append(TrainingSet(arm, MATCHINGS, selected_ids(ranking), cost))
            continue
        by_matching = {m: _of_size(contexts[arm], ranking, sizes, m) for m in MATCHINGS}
        if by_matching[SAMPLES] == by_matching[TOKENS]:
            sets.append(TrainingSet(arm, MATCHINGS, by_matching[SAMPLES], cost))
        else:
            sets += [TrainingSet(arm, [m], ids, cost) for m, ids in by_matching.items()]
    return sets


def count_tokens(pool: Pool, ids: Sequence[str], column: str) -> dict[str, int]:
    """Of these samples of the pool, by domain. column: of the index, tokens or response_tokens."""
    wanted, counted = np.array(sorted(ids), dtype="S"), Counter[str]()
    for index in pool.index(["sample_id", "domain", column]):
        index = index.filter(pa.array(among(id_array(index), wanted)))
        sums = index.group_by("domain").aggregate([(column, "sum")]).to_pylist()
        counted.update({row["domain"]: row[f"{column}_sum"] for row in sums})
    return dict(counted)


def _select(context: RunContext, pool: Pool) -> tuple[Ranking, SelectingCost]:
    """The last round's ranking under one strategy, and the cost of all rounds."""
    config, began = context.config, time.monotonic()
    lengths = Counter[str]()
    for index in pool.index(["tokens", "response_tokens"]):
        lengths.update({name: pc.sum(index[name]).as_py() for name in index.column_names})
    trained, read = 0, Counter[str]()
    repeats = context.repeats() if context.strategy.calibrates else []
    samples = [draw_warmup(repeat, pool) for repeat in repeats]
    for result in run_rounds(context, pool):
        trained += sum(_calibration_tokens(config, pool, ids) for ids in samples)
        for spec in required_scores(
            config, context.base, result.calibrated, context.baseline_models
        ):
            of_round = any(spec.model is model for model in result.calibrated)
            if result.number == 1 or of_round:  # others are there by then
                read[spec.name] += lengths[length_column(spec.encoding)]
        samples = selected_samples(context, pool, result.ranking)
    return result.ranking, SelectingCost(trained, dict(read), time.monotonic() - began)


def _calibration_tokens(config: Config, pool: Pool, ids: Sequence[str]) -> int:
    def epochs(domain: str) -> int:
        settings = config.calibrate_of(domain) if config.calibrate.per_domain else config.calibrate
        return settings.epochs

    return sum(n * epochs(domain) for domain, n in count_tokens(pool, ids, "tokens").items())


def _of_size(
    context: RunContext, ranking: Ranking, sizes: Mapping[str, Size], unit: str
) -> list[str]:
    """What the arm's own ranking selects where the budget of each domain is the size that is
    given."""
    budgets = {
        domain: Budget(unit, size.of(unit), 0, len(ranking.pool)) for domain, size in sizes.items()
    }
    return selected_ids(rank_pool(context, ranking.pool, ranking.scores, budgets))


def _selected_sizes(ranking: Ranking) -> dict[str, Size]:
    """How much is selected of each domain of which something is."""
    tokens, selected = ranking.table["response_tokens"].to_numpy(), ranking.has_fate(SELECTED)
    sizes = {}
    for domain, rows in ranking.by_domain():
        rows &= selected
        if rows.any():
            total = int(np.sum(tokens, where=rows, dtype=np.int64))
            sizes[domain] = Size(int(rows.sum()), total)
    return sizes
