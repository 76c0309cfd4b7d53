"""A plan as text, and what a run has cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from instructdiff_ray.context import RunContext
from instructdiff_ray.forecast.cost import Rate, cost_of, machines, seconds
from instructdiff_ray.forecast.work import CALIBRATE, Plan
from instructdiff_ray.pool.preview import SampledPool
from instructdiff_ray.progress import duration
from instructdiff_ray.results.console import aligned_table


def plan_cost(context: RunContext, plan: Plan, rates: Mapping[str, Rate]) -> dict[str, Any]:
    """What the plan will cost, by the names of `cost` in summary.json."""
    pieces = [
        (work.stage, work.samples, work.tokens, seconds(context.config, work, rates))
        for work in plan.work
    ]
    return cost_of(context.config, pieces)


def plan_text(
    context: RunContext, plan: Plan, rates: Mapping[str, Rate], memory: str | None
) -> str:
    """The pool, what is there, what is to be done at what cost, and how that is known."""
    blocks = [_pool(plan), f"in storage  {', '.join(plan.in_storage) or 'nothing of it'}"]
    if not plan.work:
        blocks.append("work        none: a run ranks, and writes its outputs")
        return "\n".join(blocks)
    blocks += ["", _work(context, plan, rates), "", _rates(rates, context)]
    if memory:
        blocks.append(f"memory      {memory}")
    blocks.append(
        "not counted reading, ranking and writing, which run no model; a start takes as long as it"
        " last did, with what was waited for machines"
    )
    return "\n".join(blocks)


def _pool(plan: Plan) -> str:
    counts, pool = plan.pool.counts, plan.pool
    about = "" if plan.exact else "about "
    tokens, response_tokens = (
        sum(getattr(size, name) for size in plan.sizes.values())
        for name in ("tokens", "response_tokens")
    )
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in counts["rejected"].items())
    source = "its index"
    if isinstance(pool, SampledPool):
        source = f"{pool.rows:,} rows, encoded now"
    return (
        f"pool        {about}{counts['read']:,} rows, {len(pool):,} samples, {tokens:,.0f} tokens,"
        f" {response_tokens:,.0f} of them in responses"
        f"\n            (by {source}; rejected: {reasons or 'none'})"
    )


def _work(context: RunContext, plan: Plan, rates: Mapping[str, Rate]) -> str:
    config = context.config
    table = [["round", "stage", "models", "samples", "tokens", "time", "machines", "price"]]
    for work in plan.work:
        cost = cost_of(
            config,
            [(work.stage, work.samples, work.tokens, seconds(config, work, rates))],
        )
        table.append(
            [
                *(str(work.round), work.stage, ", ".join(work.models)),
                *(f"{work.samples:,.0f}", f"{work.tokens:,.0f}"),
                _time(cost[work.stage]["seconds"]),
                str(machines(config, work.stage, work.samples)),
                _price(cost["price"]),
            ]
        )
    cost = plan_cost(context, plan, rates)
    stages = [part for part in cost.values() if isinstance(part, dict)]
    tokens = sum(part["tokens"] for part in stages)
    known = [part["seconds"] for part in stages if part["seconds"] is not None]
    total_s = sum(known) if len(known) == len(stages) else None
    table.append(["all", "", "", "", f"{tokens:,}", _time(total_s), "", _price(cost["price"])])
    if config.plan.price_per_hour is None:
        table = [row[:-1] for row in table]
    return aligned_table(table, text_columns=3)


def _time(seconds: float | None) -> str:
    return "unknown" if seconds is None else duration(seconds)


def _price(price: float | None) -> str:
    return "unknown" if price is None else f"{price:,.2f}"


def _rates(rates: Mapping[str, Rate], context: RunContext) -> str:
    if not rates:
        return (
            "speed       unknown: nothing was measured in this storage with this model, precision"
            f" and cluster={context.config.cluster.name}; run with data.limit=1000 once, which"
            " measures it, or give plan.tokens_per_second (of one scorer)"
        )
    lines = []
    for stage, rate in rates.items():
        who = "training worker" if stage == CALIBRATE else "scorer"
        lines.append(
            f"{rate.tokens_per_second:,.0f} tokens/s a {who}, {rate.start_s:.0f} s to start,"
            f" {rate.source}"
        )
    return "speed       " + "\n            ".join(lines)
