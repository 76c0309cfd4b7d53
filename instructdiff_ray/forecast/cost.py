"""What work takes: seconds at a known speed, machines, and money."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from instructdiff_ray.config.run import Config
from instructdiff_ray.context import RunContext
from instructdiff_ray.forecast.work import CALIBRATE, SCORE, Plan, Work
from instructdiff_ray.scoring.dataflow import ROWS_PER_BATCH
from instructdiff_ray.scoring.stage import scoring_speed
from instructdiff_ray.storage.speeds import Speed
from instructdiff_ray.training.calibrate import training_speed

# A training reads each token forward and twice as much backward.
TRAINING_SHARE = 1 / 3
GIVEN = "as plan.tokens_per_second says"
MEASURED = "as last measured in this storage"
DERIVED = "a third of scoring's, for no training was measured"


@dataclass(frozen=True)
class Rate:
    """tokens_per_second: of one scorer, or one worker; start_s: of each start; source: how it is
    known, for people."""

    tokens_per_second: float
    start_s: float
    source: str


def known_rates(context: RunContext, plan: Plan) -> dict[str, Rate]:
    """The rates of scoring and training, by stage; what is not known is not there."""
    config, storage = context.config, context.storage
    models = plan.scored or [context.base]
    scoring = _measured(scoring_speed(config.cluster, models, storage).read())
    training = _measured(training_speed(config, context.base, storage).read())
    if given := config.plan.tokens_per_second:
        scoring = Rate(given, 0.0, GIVEN)
    if training is None and scoring is not None:
        training = Rate(TRAINING_SHARE * scoring.tokens_per_second, scoring.start_s, DERIVED)
    found = {SCORE: scoring, CALIBRATE: training}
    return {stage: rate for stage, rate in found.items() if rate is not None}


def _measured(speed: Speed | None) -> Rate | None:
    return Rate(speed.tokens_per_second, speed.start_s, MEASURED) if speed else None


def seconds(config: Config, work: Work, rates: Mapping[str, Rate]) -> float | None:
    """How long the work takes, its starts as long as the last, machines waited for included; None
    where no rate is known."""
    rate = rates.get(work.stage)
    if rate is None:
        return None
    busy = work.tokens / (rate.tokens_per_second * processes(config, work.stage, work.samples))
    return work.starts * rate.start_s + busy


def processes(config: Config, stage: str, samples: float = math.inf) -> float:
    """Training workers; or of scorers as many as may be, but no more than there are blocks of the
    samples. Of a scorer with several GPUs each counts."""
    if stage == CALIBRATE:
        return config.cluster.train.workers
    score = config.cluster.score
    most = score.max_actors * max(1, score.gpus_per_actor or 0)
    return max(1, min(most, math.ceil(min(samples / ROWS_PER_BATCH, 2 * most))))


def machines(config: Config, stage: str, samples: float = math.inf) -> int:
    """Machines that the stage fills, at `plan.gpus_per_machine` GPUs each; one without GPUs."""
    if stage == CALIBRATE:
        each = config.cluster.train.gpus_per_worker
    else:
        gpus = config.cluster.score.gpus_per_actor
        each = 1 if gpus is None else min(1, gpus)
    gpus_in_all = each * processes(config, stage, samples)
    return max(1, math.ceil(gpus_in_all / config.plan.gpus_per_machine))


def cost_of(
    config: Config, stages: Iterable[tuple[str, float, float, float | None]]
) -> dict[str, Any]:
    """`cost` in summary.json, and the same of a plan. stages: of each piece of work its stage,
    samples, tokens and seconds; None where these are not known.

    Of calibrate and score tokens, seconds and machine hours; and machine hours and price in all,
    None where seconds are not known or no price is given.
    """
    pieces = list(stages)
    cost: dict[str, Any] = {}
    for stage in (CALIBRATE, SCORE):
        of_stage = [piece[1:] for piece in pieces if piece[0] == stage]
        hours = [
            None if s is None else machines(config, stage, samples) * s / 3600
            for samples, _, s in of_stage
        ]
        cost[stage] = {
            "tokens": round(sum(tokens for _, tokens, _ in of_stage)),
            "seconds": _sum([s for *_, s in of_stage]),
            "machine_hours": _sum(hours),
        }
    total, price = _sum([cost[s]["machine_hours"] for s in cost]), config.plan.price_per_hour
    cost["machine_hours"] = total
    cost["price"] = None if total is None or price is None else total * price
    return cost


def _sum(values: Sequence[float | None]) -> float | None:
    """None where one of them is not known."""
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None
