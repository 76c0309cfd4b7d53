from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instructdiff_ray.selection.guards import (
    FALSE_DISCOVERY_RATE,
    false_discovery_limit,
    incomplete_limit,
    mismatch,
)
from instructdiff_ray.selection.strategies import StrategyBatch

NORMAL = NormalDist()


def normal_sample(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(3.0, 0.5, count)


def plain_excluded(values: np.ndarray) -> int:
    """How many values Benjamini and Hochberg exclude, as they write it: of ordered p-values all up
    to the last with p_k ≤ q·k/n; by a normal distribution with the median, and its distance to the
    percentile one deviation below it."""
    below, median = np.percentile(values, [100 * NORMAL.cdf(-1), 50])
    p_values = sorted(1 - NORMAL.cdf((value - median) / (median - below)) for value in values)
    allowed = [FALSE_DISCOVERY_RATE * k / len(values) for k in range(1, len(values) + 1)]
    return max((k for k, (p, q) in enumerate(zip(p_values, allowed, strict=True), 1) if p <= q))


@pytest.mark.parametrize("share", [0.01, 0.05, 0.2])
def test_bad_samples_are_excluded_and_few_others(share: float) -> None:
    good, bad = normal_sample(4000), normal_sample(round(share * 4000), seed=1) + 3
    limit = false_discovery_limit(np.concatenate([good, bad]))
    assert (bad > limit).mean() > 0.9
    excluded = (good > limit).sum() + (bad > limit).sum()
    assert (good > limit).sum() <= 1.5 * FALSE_DISCOVERY_RATE * excluded


def test_the_limit_is_lower_where_more_is_bad() -> None:
    good, bad = normal_sample(4000), normal_sample(200, seed=1) + 2.5
    limits = [false_discovery_limit(np.append(good, bad[:count])) for count in (0, 20, 60, 200)]
    assert limits == sorted(limits, reverse=True) and len({*limits}) == 4


@pytest.mark.parametrize("shift", [3.0, 4.0, 5.0])
def test_the_limit_is_that_of_benjamini_and_hochberg(shift: float) -> None:
    values = np.concatenate([normal_sample(2000), normal_sample(100, seed=1) + shift * 0.5])
    limit = false_discovery_limit(values)
    # Ours tries limits a hundredth of a deviation apart, from two deviations on.
    assert abs(int((values > limit).sum()) - plain_excluded(values)) <= 3


def test_many_bad_samples_do_not_hide_behind_each_other() -> None:
    """Up to a fifth of the pool, where they move its median."""
    for count in (100, 400, 1000):
        good, bad = normal_sample(4000), normal_sample(count, seed=1) + 2.5
        limit = false_discovery_limit(np.concatenate([good, bad]))
        assert (bad > limit).mean() > 0.8
        assert (good > limit).mean() < 0.02


def test_a_skewed_pool_loses_few() -> None:
    draw = np.random.default_rng(0)
    for skewed in (draw.gamma(4, size=4000), draw.lognormal(0, 0.3, size=4000)):
        assert (skewed > false_discovery_limit(skewed)).mean() < 0.03


def test_a_domain_of_many_kinds_loses_a_tenth_at_most() -> None:
    """A third of the good samples are of a kind that is more surprising than the others."""
    values = np.concatenate([normal_sample(2000), normal_sample(1000, seed=1) * 2 - 1.5])
    assert (values > false_discovery_limit(values)).mean() < 0.1


def test_a_pool_without_bad_samples_loses_hardly_any() -> None:
    excluded = [
        (values > false_discovery_limit(values)).mean()
        for values in (normal_sample(2000, seed) for seed in range(50))
    ]
    assert np.mean(excluded) < 0.001


def test_a_domain_of_which_half_is_the_same_has_no_limit() -> None:
    values = np.append(np.zeros(600), normal_sample(400))
    assert false_discovery_limit(values) == math.inf


def test_what_is_not_known_is_not_mismatched() -> None:
    nulls = [None, 2.0, 2.0, 2.0]
    tables = {"base": pa.table({"nll": nulls}), "alone": pa.table({"nll": [1.0, None, 1.0, 4.0]})}
    value = mismatch(StrategyBatch(pa.table({"x": nulls}), tables, seed=0))
    assert np.array_equal(value, [np.nan, np.nan, 2.0, 0.5], equal_nan=True)


def test_an_end_that_is_unlikely_nowhere_is_complete() -> None:
    sure = np.random.default_rng(0).exponential(0.01, 1000)
    assert incomplete_limit(sure) == pytest.approx(math.log(1000))
    vague = normal_sample(1000) + 5
    assert 9 < incomplete_limit(vague) < 10
    assert (np.append(vague, 12.0) > incomplete_limit(vague))[-1]


@settings(deadline=None, derandomize=True)
@given(st.lists(st.floats(-1e6, 1e6), min_size=95, max_size=130))
def test_any_values_have_a_limit_and_less_than_half_lie_above(values: list[float]) -> None:
    column = np.array(values)
    for limit in (false_discovery_limit(column), incomplete_limit(column)):
        assert not math.isnan(limit)
        assert 2 * (column > limit).sum() <= len(column)
        assert limit == math.inf or len(values) >= 100
