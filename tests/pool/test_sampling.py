"""The warm-up subset: of the right size, and the same for the same pool and seed."""

from __future__ import annotations

import random
import re
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instructdiff_ray.errors import UserError
from instructdiff_ray.pool.sampling import (
    at_most,
    draws_below,
    floor_share,
    repeat_seed,
    sample_warmup,
)

IDS = [f"{number:032x}" for number in range(1000)]


def warmup(ids: list[str], ratio: float, seed: int) -> list[str]:
    return sample_warmup(len(ids), partial(draws_below, ids, seed), ratio)


@pytest.mark.parametrize(
    ("ratio", "count", "expected"),
    [(0.29, 100, 29), (0.1, 1000, 100), (0.1, 1009, 100), (0.57, 100, 57), (1.0, 7, 7)],
)
def test_a_share_is_that_of_the_ratio_as_it_is_written(
    ratio: float, count: int, expected: int
) -> None:
    assert floor_share(ratio, count) == expected


@settings(deadline=None, max_examples=300, derandomize=True)
@given(st.integers(0, 10**6), st.integers(0, 10**9))
def test_a_share_is_exact_for_any_ratio_of_six_digits(millionths: int, count: int) -> None:
    assert floor_share(millionths / 10**6, count) == count * millionths // 10**6


@settings(deadline=None, max_examples=100, derandomize=True)
@given(st.integers(1, 999), st.integers(1, 1000), st.integers(-(2**70), 2**70))
def test_the_warmup_is_exactly_the_floor_of_alpha_n_of_the_pools_ids(
    thousandths: int, size: int, seed: int
) -> None:
    expected = Fraction(thousandths, 1000) * size // 1
    if expected == 0:
        with pytest.raises(UserError):
            warmup(IDS[:size], thousandths / 1000, seed)
        return
    drawn = warmup(IDS[:size], thousandths / 1000, seed)
    assert len(drawn) == len(set(drawn)) == expected
    assert set(drawn) <= set(IDS[:size])
    assert drawn == sorted(drawn)


def test_the_draw_does_not_depend_on_the_order_of_the_pool() -> None:
    shuffled = random.Random(5).sample(IDS, len(IDS))
    assert warmup(shuffled, 0.1, 3) == warmup(IDS, 0.1, 3)
    assert warmup(IDS[::-1], 0.1, 3) == warmup(IDS, 0.1, 3)


def test_seeds_draw_different_samples_and_a_seed_always_the_same() -> None:
    draws = [set(warmup(IDS, 0.1, seed)) for seed in range(20)]
    assert draws[0] == set(warmup(IDS, 0.1, 0))
    shared = [len(one & other) for i, one in enumerate(draws) for other in draws[:i]]
    # Two draws of 100 of 1000 share 10 on average; that the chance is right shows in all pairs.
    assert max(shared) < 30
    assert 8 < sum(shared) / len(shared) < 12


def test_every_id_has_the_same_chance() -> None:
    counts = dict.fromkeys(IDS[:50], 0)
    for seed in range(400):
        for name in warmup(IDS[:50], 0.2, seed):
            counts[name] += 1
    # Binomial(400, 0.2): 80 ± 8.
    assert 40 < min(counts.values()) <= max(counts.values()) < 120


def test_a_larger_share_holds_the_smaller_one() -> None:
    assert set(warmup(IDS, 0.1, 3)) < set(warmup(IDS, 0.3, 3))


def test_draws_that_are_unlikely_high_are_drawn_all_the_same() -> None:
    high = np.arange(2**64 - 10, 2**64, dtype=np.uint64)

    def below(limit: int) -> tuple[np.ndarray, np.ndarray]:
        mask = np.array([int(number) < limit for number in high])
        return np.array(IDS[:10], "S")[mask], high[mask]

    assert sample_warmup(1_000_000, below, 4e-6) == IDS[:4]


def test_of_equal_draws_the_lesser_id_comes_first() -> None:
    draws = np.array([3, 5, 5, 5, 9], np.uint64)
    ids = np.array([IDS[n] for n in (7, 6, 2, 4, 1)], "S")
    assert sample_warmup(5, lambda limit: (ids, draws), 0.6) == [IDS[2], IDS[4], IDS[7]]


@settings(deadline=None, max_examples=200, derandomize=True)
@given(st.integers(1, 2000))
def test_where_alpha_leaves_no_sample_the_advice_is_enough(size: int) -> None:
    ids = [""] * size
    with pytest.raises(UserError, match=r"calibrate\.ratio") as refusal:
        warmup(ids, 1e-9, 0)
    advised = re.search(r"raise it to (\S+) or more", str(refusal.value))
    assert advised is not None
    assert floor_share(float(advised.group(1)), len(ids)) >= 1


def test_an_empty_pool_is_refused() -> None:
    with pytest.raises(UserError, match=r"calibrate\.ratio"):
        warmup([], 0.5, 0)


def test_no_two_runs_of_several_repeats_share_a_subset_by_accident() -> None:
    seeds = [repeat_seed(seed, repeat) for seed in range(50) for repeat in range(20)]
    assert len({*seeds}) == len(seeds) and 0 <= min(seeds) <= max(seeds) < 2**31
    assert [repeat_seed(seed, 0) for seed in range(50)] == list(range(50))
    drawn = [set(warmup(IDS, 0.1, repeat_seed(7, r))) for r in range(3)]
    assert drawn[0] == set(warmup(IDS, 0.1, 7))
    # Of two random tenths a tenth is shared.
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert len(drawn[first] & drawn[second]) < 30


def test_a_bound_takes_some_at_random_and_the_same_of_the_same() -> None:
    assert at_most(IDS, None, 0) == at_most(IDS, len(IDS), 0) == IDS
    some = at_most(IDS, 100, 0)
    assert len(some) == 100 and some == sorted(some) and set(some) < set(IDS)
    assert at_most(IDS[::-1], 100, 0) == at_most(some, 100, 0) == some != at_most(IDS, 100, 1)
    # Not those that the warm-up subset is drawn by.
    assert some != warmup(IDS, 0.1, 0)
