"""A mixture beside the pool that it is asked of: what can be known of it before anything is
trained."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from instructdiff_ray.config.run import Config
from instructdiff_ray.errors import UserError
from instructdiff_ray.pool.pool import Pool
from instructdiff_ray.pool.sampling import floor_share
from instructdiff_ray.selection.budgets import (
    SAMPLES,
    Budget,
    Size,
    domain_budgets,
    greatest_ratio,
    mixture_shares,
)
from instructdiff_ray.selection.strategies import STRATEGIES

# Domains that are named in a line.
LISTED = 20


def pool_sizes(pool: Pool) -> dict[str, Size]:
    """The size of each domain, in the names' order."""
    samples, tokens = Counter[str](), Counter[str]()
    for index in pool.index(["domain", "response_tokens"]):
        sums = index.group_by("domain").aggregate(
            [("response_tokens", "count"), ("response_tokens", "sum")]
        )
        for row in sums.to_pylist():
            samples[row["domain"]] += row["response_tokens_count"]
            tokens[row["domain"]] += row["response_tokens_sum"]
    return {name: Size(samples[name], tokens[name]) for name in sorted(samples)}


def check_mixture(config: Config, sizes: Mapping[str, Size]) -> None:
    """Raises UserError where the pool can't give what `select.mixture` asks, whatever the scores
    will be."""
    select = config.select
    unknown = [name for name in select.shares if name not in sizes]
    if unknown:
        raise UserError(
            f"select.mixture names {_listed(unknown)}, of which the pool has no sample; its domains"
            f" are {_listed(sizes)}"
        )
    total = select.mixture_sum()
    if len(select.shares) == len(sizes) and total < 1:
        raise UserError(
            f"select.mixture names all domains of the pool and its shares sum to {float(total):g};"
            " make them sum to 1"
        )
    budgets = budgets_of(config, sizes)
    _check_rooms(config, sizes, budgets)
    nothing = [name for name, budget in budgets.items() if not budget.size]
    if nothing and config.rounds > 1 and config.calibrate.per_domain:
        raise UserError(
            f"select.mixture selects nothing of {_listed(nothing)}, on which calibrate.per_domain"
            " would calibrate a model in round 2; name it in the mixture, or leave it out of the"
            " pool"
        )


def budgets_of(config: Config, sizes: Mapping[str, Size]) -> dict[str, Budget]:
    """The budget of each domain of these sizes."""
    return domain_budgets({name: config.select_of(name) for name in sizes}, sizes)


def _check_rooms(config: Config, sizes: Mapping[str, Size], budgets: Mapping[str, Budget]) -> None:
    """The filter leaves a domain its samples but twice ⌊γN⌋; of their tokens nothing is known but
    that they are no more than the domain's."""
    unit, filters = config.select.budget, STRATEGIES[config.strategy].calibrates
    room = {name: size.of(unit) for name, size in sizes.items()}
    if unit == SAMPLES and filters:
        for name, size in room.items():
            room[name] -= 2 * floor_share(config.select_of(name).reject_ratio, size)
    short = next((name for name, budget in budgets.items() if budget.size > room[name]), None)
    if short is None:
        return
    left = "the filter leaves" if room[short] < sizes[short].of(unit) else "there are"
    whole = sum(size.of(unit) for size in sizes.values())
    ratio = greatest_ratio(mixture_shares(config.select, sizes), whole, room)
    raise UserError(
        f"select.mixture wants {budgets[short].size:,} {unit} of {short}, and {left}"
        f" {room[short]:,}; lower its share, or select.ratio to {ratio:g}"
    )


def mixture_notes(config: Config, sizes: Mapping[str, Size]) -> Iterator[str]:
    """What a user should know who asks for this mixture of a pool that can give it."""
    unnamed = [name for name in sizes if name not in config.select.shares]
    if unnamed and config.select.mixture_sum() == 1:
        yield (
            f"nothing is selected of {_listed(unnamed)}: the shares of select.mixture sum to 1"
            " without it"
        )
    own = sorted(config.domains_with("select", "ratio") & sizes.keys())
    if own:
        yield f"select.ratio of {_listed(own)} is not used: select.mixture says how much it gives"


def _listed(names: Mapping[str, Size] | list[str]) -> str:
    shown = ", ".join([*names][:LISTED])
    return f"{shown} and {len(names) - LISTED:,} more" if len(names) > LISTED else shown
