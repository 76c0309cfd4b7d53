"""How sure a difference between two ways of training is: pure functions of columns.

Both ways are tried with the same seeds and judged by the same held-out samples, so differences are
taken within each seed and sample. Two things vary: the seeds, that is warm-up subset, draw and
order of training, and the held-out samples; another run would have others of both. The variance of
the mean over S seeds is therefore

    V = v_seeds + max(0, v_samples − v_both)

v_seeds is the variance of the seeds' means, divided by S, and already has in it what is particular
to a sample under one seed (v_both); v_samples is that of a bootstrap which resamples the held-out
samples for all seeds at once. The interval is ±t·√V: t is the geometric mean of Student's t of S−1
and of N−1 degrees of freedom, weighted by the two parts of V. (Cochran and Cox take the
arithmetic mean, which is a little too cautious; Satterthwaite's degrees of freedom leave out the
truth in 12 of 100 cases with two seeds, and in 7 with three, where both parts matter.)

Resampling the seeds too, as a hierarchical bootstrap does, gives intervals that are far too narrow
with a few seeds: of three, a resample has but ten compositions, and its variance is two thirds of
what it should be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

LEVEL = 0.95
RESAMPLES, AT_ONCE = 2000, 20


@dataclass(frozen=True)
class Difference:
    """The mean over the seeds, and of each seed. half_width: of the interval around the mean; None
    where nothing tells how sure it is."""

    mean: float
    half_width: float | None
    by_seed: Sequence[float]


def paired_differences(nll_sums: np.ndarray, tokens: np.ndarray) -> list[Difference]:
    """Differences of NLL, nats a token.

    nll_sums: [K, S, N], for each of K comparisons, S seeds and N held-out samples, the NLL of the
        response's tokens under one model minus that under the other, nats.
    tokens: [N], of the responses.
    With one seed the interval is over the held-out samples alone; with one sample, over the seeds.
    """
    comparisons, seeds, samples = nll_sums.shape
    means = nll_sums.sum(axis=2) / tokens.sum()
    if samples == 1:
        return [seed_difference(by_seed) for by_seed in means.tolist()]
    resampled = _resampled_means(nll_sums.reshape(-1, samples), tokens)
    resampled = resampled.reshape(RESAMPLES, comparisons, seeds)
    # A bootstrap's variance is that of a population of these samples: (n − 1)/n of what is wanted.
    unbiased = samples / (samples - 1)
    v_samples = unbiased * resampled.mean(axis=2).var(axis=0)
    v_one_seed = unbiased * resampled.var(axis=0).mean(axis=1)
    found = []
    for number, by_seed in enumerate(means):
        if seeds == 1:
            half = t_quantile(samples - 1) * np.sqrt(v_samples[number])
        else:
            v_both = (v_one_seed[number] - v_samples[number]) / (seeds - 1)
            v_seeds = np.var(by_seed, ddof=1) / seeds
            half = _half_width(v_seeds, seeds, max(0.0, v_samples[number] - v_both), samples)
        found.append(Difference(float(by_seed.mean()), float(half), by_seed.tolist()))
    return found


def seed_difference(by_seed: Sequence[float]) -> Difference:
    """Of something that each seed has one figure of, such as a benchmark's score."""
    seeds = len(by_seed)
    half = None
    if seeds > 1:
        half = t_quantile(seeds - 1) * float(np.std(by_seed, ddof=1)) / seeds**0.5
    return Difference(float(np.mean(by_seed)), half, list(by_seed))


def _resampled_means(nll_sums: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """[RESAMPLES, rows]: each row's NLL a token over as many samples, drawn with replacement. All
    rows have the same draws."""
    rng, samples = np.random.default_rng(0), len(tokens)
    columns = np.column_stack([nll_sums.T, tokens])
    means = []
    for _ in range(0, RESAMPLES, AT_ONCE):
        drawn = rng.integers(0, samples, (AT_ONCE, samples))
        drawn += np.arange(AT_ONCE)[:, None] * samples
        times = np.bincount(drawn.ravel(), minlength=AT_ONCE * samples)
        sums = times.reshape(AT_ONCE, samples).astype(float) @ columns
        means.append(sums[:, :-1] / sums[:, -1:])
    return np.concatenate(means)


def _half_width(v_seeds: float, seeds: int, v_more: float, samples: int) -> float:
    """v_more: what the held-out samples add to the variance."""
    variance = v_seeds + v_more
    if not variance:  # all the same
        return 0.0
    weight, of_seeds, of_samples = (
        v_seeds / variance,
        t_quantile(seeds - 1),
        t_quantile(samples - 1),
    )
    return float(of_seeds**weight * of_samples ** (1 - weight) * np.sqrt(variance))


@cache
def t_quantile(freedom: int, probability: float = 0.5 + LEVEL / 2) -> float:
    """Student's t, of a probability ≥ 0.5.

    With T = √ν tan φ, the density of φ is proportional to cos^(ν−1) φ.
    """
    freedom = min(freedom, 10_000)  # from there on it is the normal distribution's
    angles = np.linspace(0, np.pi / 2, 100_001)
    density = np.cos(angles) ** (freedom - 1)
    below = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2)])
    angle = np.interp(2 * probability - 1, below / below[-1], angles)
    return float(np.sqrt(freedom) * np.tan(angle))
