"""Budgets by domain against plain arithmetic: shares of each domain, and of the whole selection."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instructdiff_ray.config.selection import SelectConfig
from instructdiff_ray.selection.budgets import (
    Budget,
    Size,
    domain_budgets,
    domain_sizes,
    greatest_ratio,
    mixture_shares,
)
from instructdiff_ray.selection.select import FATES, Candidates, select, take_within_budget

NAMES = ["code", "law", "math", "med"]
# Whole percents, so that sums of them are exact on paper.
PERCENTS = st.dictionaries(
    st.sampled_from(NAMES), st.integers(1, 100), min_size=1, max_size=4
).filter(lambda shares: sum(shares.values()) <= 100)
SIZES = st.lists(st.integers(1, 400), min_size=4, max_size=4)
UNITS = st.sampled_from(["samples", "tokens"])
# Domain, value (few, so that ties are common), response tokens, whether it may not be selected.
SAMPLE = st.tuples(
    st.integers(0, 3), st.sampled_from([0.0, 0.5, 1.0, 2.0]), st.integers(1, 9), st.booleans()
)


def mixture_of(percents: dict[str, int]) -> dict[str, float]:
    return {name: percent / 100 for name, percent in percents.items()}


def plain_mixture(percents: dict[str, int], sizes: dict[str, int], ratio: float) -> dict[str, int]:
    """What is wanted of each domain, in hundredths and by hand: round down, then hand out what is
    left to those that lost most."""
    total = max(1, math.floor(Fraction(str(ratio)) * sum(sizes.values())))
    unnamed = {name: size for name, size in sizes.items() if name not in percents}
    rest = 100 - sum(percents.values())
    exact = {
        name: Fraction(total * percents[name], 100)
        if name in percents
        else Fraction(total * rest * size, 100 * sum(unnamed.values()))
        for name, size in sizes.items()
    }
    wanted = {name: int(part) for name, part in exact.items()}
    left = math.floor(sum(exact.values())) - sum(wanted.values())
    for _ in range(left):
        most = max(sorted(exact), key=lambda name: exact[name] - wanted[name])
        wanted[most] += 1
    return wanted


@settings(deadline=None, max_examples=300, derandomize=True)
@given(PERCENTS, SIZES, UNITS, st.sampled_from([0.01, 0.1, 0.29, 1.0]))
def test_a_mixture_shares_out_all_of_the_budget(percents, sizes, unit, ratio) -> None:  # type: ignore[no-untyped-def]
    config = SelectConfig(ratio=ratio, budget=unit, mixture=mixture_of(percents))
    # The other unit is of other sizes, so that one is not taken for the other.
    of_domain = {
        name: Size(size, 7 * size + 1) if unit == "samples" else Size(2 * size + 1, size)
        for name, size in zip(NAMES, sizes, strict=True)
    }
    budgets = domain_budgets(dict.fromkeys(NAMES, config), of_domain)
    wanted = {name: budget.size for name, budget in budgets.items()}
    assert wanted == plain_mixture(percents, dict(zip(NAMES, sizes, strict=True)), ratio)
    if len(percents) < len(NAMES) or sum(percents.values()) == 100:
        whole = max(1, math.floor(Fraction(str(ratio)) * sum(sizes)))
        assert sum(wanted.values()) == whole
        assert sum(budget.share for budget in budgets.values()) == 1


@settings(deadline=None, max_examples=200, derandomize=True)
@given(
    st.lists(SAMPLE, min_size=4, max_size=60), PERCENTS, UNITS, st.sampled_from([0.05, 0.3, 1.0])
)
def test_each_domain_gives_its_share_in_the_order_of_its_ranks(  # type: ignore[no-untyped-def]
    samples, percents, unit, ratio
) -> None:
    config = SelectConfig(ratio=ratio, reject_ratio=0, budget=unit, mixture=mixture_of(percents))
    domains, values, tokens, excluded = (np.array(c) for c in zip(*samples, strict=True))
    sizes = dict(zip(NAMES, domain_sizes(domains, tokens, 4), strict=True))
    budgets = domain_budgets(dict.fromkeys(NAMES, config), sizes)
    decided = np.where(excluded, FATES.index("excluded"), -1)
    candidates = Candidates(domains, tokens, values, None, decided)
    fates = select(candidates, "lowest", [config] * 4, [budgets[name] for name in NAMES])
    for number, name in enumerate(NAMES):
        rows = [row for row in range(len(samples)) if samples[row][0] == number]
        free = sorted((row for row in rows if not excluded[row]), key=lambda r: (values[r], r))
        expected, held = [], 0
        for row in free:  # until it has what is wanted; no other domain's samples fill its place
            if held >= budgets[name].size:
                break
            expected.append(row)
            held += 1 if unit == "samples" else tokens[row]
        chosen = np.flatnonzero((fates == FATES.index("selected")) & (domains == number))
        assert chosen.tolist() == sorted(expected)


@settings(deadline=None, max_examples=200, derandomize=True)
@given(st.lists(st.integers(0, 29), max_size=300), st.integers(0, 40), UNITS, st.integers(0, 3))
def test_an_order_is_taken_until_the_budget_is_full(order, size, unit, least) -> None:  # type: ignore[no-untyped-def]
    tokens = np.arange(30) % 5 + 1
    budget = Budget(unit, size, least, 30)
    taken, held = [], 0
    for position in order:
        if len(taken) >= least and (held >= size or len(taken) == 30):
            break
        taken.append(position)
        held += 1 if unit == "samples" else tokens[position]
    assert take_within_budget(iter(order), tokens, budget) == taken


def test_nothing_is_computed_for_a_budget_of_nothing() -> None:
    def order():  # type: ignore[no-untyped-def]
        raise AssertionError("ZIP would compress the whole domain")
        yield

    assert take_within_budget(order(), np.ones(3, np.int32), Budget("tokens", 0, 0, 3)) == []


@settings(deadline=None, max_examples=300, derandomize=True)
@given(PERCENTS, SIZES, st.lists(st.integers(0, 100), min_size=4, max_size=4))
def test_the_greatest_ratio_meets_all_shares_and_a_greater_one_does_not(  # type: ignore[no-untyped-def]
    percents, sizes, left
) -> None:
    mixture = mixture_of(percents)
    config = SelectConfig(mixture=mixture)
    of_domain = {name: Size(size, 0) for name, size in zip(NAMES, sizes, strict=True)}
    available = {
        name: size * part // 100 for name, size, part in zip(NAMES, sizes, left, strict=True)
    }
    shares = mixture_shares(config, of_domain)

    def wanted(ratio: float) -> dict[str, int]:
        asked = SelectConfig(ratio=ratio, mixture=mixture)
        budgets = domain_budgets(dict.fromkeys(NAMES, asked), of_domain)
        return {name: budget.size for name, budget in budgets.items()}

    ratio = greatest_ratio(shares, sum(sizes), available)
    if not ratio:
        assert any(share and not available[name] for name, share in shares.items())
        return
    if ratio * sum(sizes) >= 1:  # less is rounded up to one sample
        assert all(count <= available[name] for name, count in wanted(ratio).items())
    # Three digits, and by how much largest remainders may differ from the exact shares.
    greater = ratio * 1.01 + 4 / (sum(sizes) * min(s for s in shares.values() if s))
    if greater <= 1:
        assert any(count > available[name] for name, count in wanted(greater).items())


def test_shares_that_are_rounded_sum_to_one() -> None:
    config = SelectConfig(ratio=0.1, mixture={"code": 0.333, "law": 0.333, "math": 0.333})
    sizes = {name: Size(1000, 0) for name in NAMES}
    budgets = domain_budgets(dict.fromkeys(NAMES, config), sizes)
    assert [budget.size for budget in budgets.values()] == [134, 133, 133, 0]
    assert [budget.share for budget in budgets.values()] == [*[Fraction(1, 3)] * 3, 0]


@pytest.mark.parametrize("chunk", [3, 1 << 20])
def test_sizes_are_counted_over_all_chunks(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("instructdiff_ray.selection.budgets.CHUNK", chunk)
    domains = np.array([0, 2, 2, 0, 2, 0, 0], np.int32)
    tokens = np.array([2**31 - 1] * 7, np.int32)
    most = 2**31 - 1
    assert domain_sizes(domains, tokens, 4) == [
        Size(4, 4 * most),
        Size(0, 0),
        Size(3, 3 * most),
        Size(0, 0),
    ]
