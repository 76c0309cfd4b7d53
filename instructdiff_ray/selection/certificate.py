"""A ranking by the mean of several calibrations, and how stable it is: each calibration alone is
ranked as a single run would be, and these are compared (stability.py)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import pyarrow as pa

from instructdiff_ray.pool.pool import Pool
from instructdiff_ray.pool.sampling import floor_share
from instructdiff_ray.scoring.spec import ScoreTable
from instructdiff_ray.selection.batches import RankingInputs
from instructdiff_ray.selection.ranking import DELTA_ENTROPY_STD, PROBABILITY, Ranking, rank
from instructdiff_ray.selection.select import EXCLUDED, FATES, NOT_TOP, SELECTED
from instructdiff_ray.selection.stability import (
    DomainModel,
    SingleRuns,
    Stability,
    shared_pairs,
    stability,
)

IN_BAND = [FATES.index(fate) for fate in (SELECTED, NOT_TOP, EXCLUDED)]


def rank_by_mean(pool: Pool, scores: Mapping[str, ScoreTable], inputs: RankingInputs) -> Ranking:
    """The ranking by the mean of `inputs.repeats`, of which there are several; with the columns
    PROBABILITY and DELTA_ENTROPY_STD, and the stability of each domain and of all, under "". Where
    no repeat selects anything it has none of these."""
    ranking, repeats = rank(pool, scores, inputs), len(inputs.repeats)
    probability = np.zeros(ranking.table.num_rows, np.float32)
    deviation = np.empty(ranking.table.num_rows, np.float32)
    models: list[DomainModel] = []
    overlaps: list[float] = []
    stabilities: dict[str, Stability] = {}
    for name, rows, runs in single_runs(ranking):
        deviation[rows] = runs.delta_entropy.std(axis=0, ddof=1)
        shared, size = shared_pairs(runs.selected)
        if size == 0:  # guards may exclude all of a small domain
            continue
        model = DomainModel.fit(runs)
        probability[rows] = model.probabilities(runs)
        stabilities[name] = stability([model], shared / size, repeats)
        models.append(model)
        overlaps.append(shared / size)
    if not models:
        return ranking
    overlap = float(np.average(overlaps, weights=[model.selected for model in models]))
    stabilities[""] = stability(models, overlap, repeats)
    table = ranking.table.append_column(PROBABILITY.name, pa.array(probability))
    table = table.append_column(DELTA_ENTROPY_STD.name, pa.array(deviation))
    return replace(ranking, table=table, stability=stabilities)


def single_runs(ranking: Ranking) -> Iterator[tuple[str, np.ndarray, SingleRuns]]:
    """Of each domain its name, its rows, and what each repeat alone makes of them."""
    inputs = ranking.inputs
    size = (len(inputs.repeats), ranking.table.num_rows)
    nll, entropy, fates = (np.empty(size, kind) for kind in (np.float32, np.float32, np.int8))
    for row, repeat in enumerate(inputs.repeats):
        single = rank(ranking.pool, ranking.scores, replace(inputs, repeats=(repeat,)))
        nll[row] = single.table["delta_nll"].to_numpy()
        entropy[row] = single.table["delta_entropy"].to_numpy()
        fates[row], _ = single.codes("fate")
    for name, of_name in ranking.by_domain():
        rows = np.flatnonzero(of_name)
        of_domain = fates[:, rows]
        excluded = (of_domain == FATES.index(EXCLUDED)).sum(axis=0)
        in_band = np.isin(of_domain, IN_BAND).sum(axis=0)
        yield (
            name,
            rows,
            SingleRuns(
                nll[:, rows],
                entropy[:, rows],
                of_domain == FATES.index(SELECTED),
                excluded / np.maximum(1, in_band),
                floor_share(inputs.select(name).reject_ratio, len(rows)),
            ),
        )
