"""How sure a difference is: against simulated data, whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest

from instructdiff_ray.evaluation.intervals import (
    paired_differences,
    seed_difference,
    t_quantile,
)


@pytest.mark.parametrize(
    ("probability", "freedom", "quantile"),
    # From tables; the last is the normal distribution's.
    [(0.975, 1, 12.7062), (0.975, 2, 4.30265), (0.95, 3, 2.35336), (0.975, 30, 2.04227)]
    + [(0.975, 10**9, 1.95996)],
)
def test_the_quantiles_of_students_t(probability: float, freedom: int, quantile: float) -> None:
    assert t_quantile(freedom, probability) == pytest.approx(quantile, rel=2e-4)


def simulated(
    runs: int, seeds: int, samples: int, effects: tuple[float, float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Differences whose mean is 0, [runs, seeds, samples], and the samples' tokens.

    effects: standard deviation of what comes from the seed, from the held-out samples and from a
        seed's own effect on each sample, each of one seed's mean. Lengths are as uneven as real
        responses', and samples' effects have heavy tails.
    """
    rng = np.random.default_rng(seeds * 1000 + samples)
    tokens = np.ceil(np.exp(rng.normal(4, 0.8, samples)))
    of_seed, of_samples, of_both = effects
    # A weighted mean's standard deviation is larger than that of as many equal weights.
    scale = tokens.sum() / np.sqrt((tokens**2).sum())
    tails = rng.standard_t(5, (runs, seeds + 1, samples)) / np.sqrt(5 / 3) * scale
    nats = of_seed * rng.normal(size=(runs, seeds, 1))
    nats = nats + of_samples * tails[:, :1] + of_both * tails[:, 1:]
    return nats * tokens, tokens


# Seed noise alone, sample noise alone, one in the other's shadow, all at once.
NOISE = [(1, 0.05, 0.05), (0, 1, 0.3), (0.3, 1, 0.3), (1, 0.3, 0.3), (1, 1, 1), (0.3, 0.3, 1)]


def coverage(runs: int, seeds: int, samples: int, effects: tuple[float, float, float]) -> float:
    """The share of the intervals that hold the truth."""
    found = paired_differences(*simulated(runs, seeds, samples, effects))
    return float(np.mean([abs(d.mean) <= (d.half_width or 0) for d in found]))


# Two points, and what chance adds in so many runs.
@pytest.mark.parametrize("effects", [NOISE[0], NOISE[2], NOISE[4]])
def test_95_of_100_intervals_hold_the_truth(effects: tuple[float, float, float]) -> None:
    assert abs(coverage(600, 3, 60, effects) - 0.95) <= 0.02 + 2 * np.sqrt(0.95 * 0.05 / 600)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("effects", NOISE)
def test_they_do_whatever_the_noise_comes_from(
    seeds: int, effects: tuple[float, float, float]
) -> None:
    covered = coverage(4000, seeds, 200, effects)
    assert abs(covered - 0.95) <= 0.02 + 2 * np.sqrt(0.95 * 0.05 / 4000)


def test_of_one_seed_the_interval_is_over_the_held_out_samples() -> None:
    assert abs(coverage(1000, 1, 100, (0, 1, 0)) - 0.95) <= 0.02 + 2 * np.sqrt(0.95 * 0.05 / 1000)


def test_a_bootstrap_over_three_seeds_would_be_too_narrow() -> None:
    """Why seeds are not resampled."""
    sums, tokens = simulated(1000, 3, 50, (1, 0.05, 0.05))
    means, rng = sums.sum(axis=2) / tokens.sum(), np.random.default_rng(0)
    drawn = means[:, rng.integers(0, 3, (400, 3))].mean(axis=2)
    low, high = np.quantile(drawn, [0.025, 0.975], axis=1)
    assert np.mean((low <= 0) & (high >= 0)) < 0.8


def test_differences_are_those_of_all_tokens_and_of_each_seed() -> None:
    sums = np.array([[[1.0, 4.0], [3.0, 8.0]]])
    (found,) = paired_differences(sums, np.array([1, 4]))
    assert found.by_seed == pytest.approx([1.0, 2.2]) and found.mean == pytest.approx(1.6)
    (same,) = paired_differences(np.full((1, 2, 3), 2.0), np.array([2, 2, 2]))
    assert same.mean == 1.0 and same.half_width == 0.0


def test_a_pairing_takes_out_what_both_have_in_common() -> None:
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 300, 100)
    hard = rng.normal(3, 1, 100) * tokens
    arms = hard + rng.normal(0, 0.01, (2, 100)) * tokens
    (paired,) = paired_differences((arms[:1] - arms[1:])[:, None], tokens)
    (alone,) = paired_differences(arms[:1, None], tokens)
    assert paired.half_width is not None and alone.half_width is not None
    assert paired.half_width < alone.half_width / 20


def test_a_score_of_each_seed_has_students_interval() -> None:
    found = seed_difference([0.1, 0.3, 0.2])
    assert found.mean == pytest.approx(0.2)
    assert found.half_width == pytest.approx(4.30265 * 0.1 / np.sqrt(3), rel=1e-4)
    assert seed_difference([0.1]).half_width is None
