"""How stable a selection is: what another run of the same calibration would select.

Repeats of the calibration are single runs themselves, and how much two of them share is counted.
What a few cannot tell by counting comes from a model of how ΔNLL and ΔH vary over repeats: the
probability that a single run selects a sample, and how much two runs would share that each rank by
the mean of more repeats.

The model, of each measure within one domain: z_ir = m_i + e_ir is the place of sample i in repeat r
as a quantile of the normal distribution, with m_i ~ N(μ, τ²) over samples and e_ir ~ N(0, σ_i²)
over repeats, all estimated from the repeats (empirical Bayes; Efron and Morris, 1973, *Stein's
estimation rule and its competitors*). So what moves all samples alike counts for nothing, as in a
selection, and what the mean of a few repeats owes to chance is not taken for a difference between
samples. Two runs are independent given m, so noise that the samples of one run share needs no term
of its own.

Pure functions of columns; R repeats of a domain cost R · 9 bytes a sample, and as much once more
while it is fitted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

# The overlap of two selections that more repeats are to reach, and the most repeats looked at.
WANTED_OVERLAP, MOST_REPEATS = 0.9, 1000
# What a single run selects with at least this probability is the stable core.
CORE_PROBABILITY = 0.9
# Samples of a domain by which the model is fitted: the first, for ids are hashes.
FITTED_SAMPLES = 10_000
CHUNK = 100_000
LEAST_VARIANCE = 1e-9
_POINTS = np.linspace(-8, 8, 8001)
_NORMAL_CDF = np.array([(1 + math.erf(x / math.sqrt(2))) / 2 for x in _POINTS])
# The mean over a standard normal distribution, as a sum.
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(21)


@dataclass(frozen=True)
class SingleRuns:
    """What R runs made of the n samples of one domain.

    delta_nll, delta_entropy: [R, n], nats. selected: [R, n].
    excluded: [n], of the runs that had the sample in the band, the share whose guard excluded it.
    cut: how many samples the filter cuts at each end.
    """

    delta_nll: np.ndarray
    delta_entropy: np.ndarray
    selected: np.ndarray
    excluded: np.ndarray
    cut: int


@dataclass(frozen=True)
class Stability:
    """overlap: the share |A ∩ B| / |A| of two single runs, in expectation; mean_overlap: of two
    runs that rank by the mean of as many repeats as these; repeats_needed: how many reach
    WANTED_OVERLAP, None: more than MOST_REPEATS."""

    overlap: float
    mean_overlap: float
    repeats_needed: int | None


@dataclass(frozen=True)
class Spread:
    """How one measure varies, [n] each. place, uncertainty: mean and variance of what is known of
    m_i; noise: σ_i²."""

    place: np.ndarray
    uncertainty: np.ndarray
    noise: np.ndarray

    def below(self, limit: float, repeats: float) -> np.ndarray:
        """[n], the probability that the mean of so many new repeats is below the limit."""
        return normal_cdf((limit - self.place) / np.sqrt(self.uncertainty + self.noise / repeats))

    def at(self, node: float) -> Spread:
        """What it is if m_i is so many standard deviations from its mean."""
        place = self.place + node * np.sqrt(self.uncertainty)
        return Spread(place, np.zeros(len(place)), self.noise)


@dataclass(frozen=True)
class Measure:
    """The model of one measure. samples: [R, at most FITTED_SAMPLES], sorted, by which a value
    becomes a place; common: mean of σ_i²; kept: how much of a sample's own variance is its σ_i²;
    between: τ²; centre: μ."""

    samples: np.ndarray
    common: float
    kept: float
    between: float
    centre: float

    @staticmethod
    def fit(values: np.ndarray) -> Measure:
        """values: [R, n], R > 1."""
        samples = np.sort(values[:, :FITTED_SAMPLES], axis=1)
        places = _places(samples, values[:, :FITTED_SAMPLES])
        repeats, mean, variance = len(values), places.mean(axis=0), places.var(axis=0, ddof=1)
        common = float(variance.mean())
        # The sample variances vary by chance; only what they vary more is between the samples.
        fourth = float(np.mean(variance**2)) * (repeats - 1) / (repeats + 1)
        chance = max(float(variance.var()), LEAST_VARIANCE)
        kept = min(1.0, max(0.0, fourth - common**2) / chance)
        between = max(float(mean.var()) - common / repeats, LEAST_VARIANCE)
        return Measure(samples, common, kept, between, float(mean.mean()))

    def spread(self, values: np.ndarray) -> Spread:
        """values: [R, any number of samples]."""
        places, repeats = _places(self.samples, values), len(values)
        variance = places.var(axis=0, ddof=1)
        noise = np.maximum(self.kept * variance + (1 - self.kept) * self.common, LEAST_VARIANCE)
        trust = self.between / (self.between + noise / repeats)
        place = trust * places.mean(axis=0) + (1 - trust) * self.centre
        return Spread(place, trust * noise / repeats, noise)


@dataclass(frozen=True)
class DomainModel:
    """The model of one domain.

    nll, entropy: of ΔNLL and ΔH; nll_spread, entropy_spread, allowed: of the fitted samples, the
    last the probability that no guard excludes them; cut, count: of these, how many are cut at each
    end and selected in expectation; selected: of all, how many.
    """

    nll: Measure
    entropy: Measure
    nll_spread: Spread
    entropy_spread: Spread
    allowed: np.ndarray
    cut: float
    count: float
    selected: float

    @staticmethod
    def fit(runs: SingleRuns) -> DomainModel:
        nll, entropy = Measure.fit(runs.delta_nll), Measure.fit(runs.delta_entropy)
        allowed = 1 - runs.excluded[:FITTED_SAMPLES]
        selected = float(runs.selected.sum(axis=1).mean())
        share = len(allowed) / len(runs.excluded)
        return DomainModel(
            nll,
            entropy,
            nll.spread(runs.delta_nll[:, :FITTED_SAMPLES]),
            entropy.spread(runs.delta_entropy[:, :FITTED_SAMPLES]),
            allowed,
            runs.cut * share,
            selected * share,
            selected,
        )

    def probabilities(self, runs: SingleRuns) -> np.ndarray:
        """[n], fp32: that a new single run selects the sample."""
        low, high, last = self._limits(1)
        result = np.empty(len(runs.excluded), np.float32)
        for start in range(0, len(result), CHUNK):
            rows = slice(start, start + CHUNK)
            nll = self.nll.spread(runs.delta_nll[:, rows])
            entropy = self.entropy.spread(runs.delta_entropy[:, rows])
            in_band = nll.below(high, 1) - nll.below(low, 1)
            result[rows] = (1 - runs.excluded[rows]) * in_band * entropy.below(last, 1)
        return result

    def overlap(self, repeats: int) -> float:
        """Of two runs that rank by the mean of so many repeats: Σ E[p_i(m)²] / Σ E[p_i(m)], where
        p_i(m) is the probability that one of them selects sample i."""
        low, high, last = self._limits(repeats)
        in_band, in_rank = (np.zeros(len(self.allowed)) for _ in range(2))
        for node, weight in zip(_NODES, _WEIGHTS / _WEIGHTS.sum(), strict=True):
            nll, entropy = self.nll_spread.at(node), self.entropy_spread.at(node)
            in_band += weight * (nll.below(high, repeats) - nll.below(low, repeats)) ** 2
            in_rank += weight * entropy.below(last, repeats) ** 2
        return min(1.0, float(np.sum(self.allowed**2 * in_band * in_rank)) / self.count)

    def _limits(self, repeats: int) -> tuple[float, float, float]:
        """The places between which the band lies, and that of the last sample selected."""
        n, nll = len(self.allowed), self.nll_spread
        low = _solve(lambda x: float(nll.below(x, repeats).sum()), self.cut)
        high = _solve(lambda x: float(nll.below(x, repeats).sum()), n - self.cut)
        weight = self.allowed * (nll.below(high, repeats) - nll.below(low, repeats))
        entropy = self.entropy_spread
        last = _solve(lambda x: float(weight @ entropy.below(x, repeats)), self.count)
        return low, high, last


def stability(models: Sequence[DomainModel], overlap: float, repeats: int) -> Stability:
    """Of domains together. overlap: as counted in the single runs."""
    weights = np.array([model.selected for model in models])

    def expected(number: int) -> float:
        return float(np.average([model.overlap(number) for model in models], weights=weights))

    return Stability(overlap, expected(repeats), fewest_repeats(expected))


def shared_pairs(selected: np.ndarray) -> tuple[float, float]:
    """The mean of |A ∩ B| over all pairs of runs, and of |A|. selected: [R, n]."""
    shared = [np.count_nonzero(a & b) for a, b in combinations(selected, 2)]
    return float(np.mean(shared)), float(selected.sum(axis=1).mean())


def normal_cdf(x: np.ndarray) -> np.ndarray:
    """Φ(x), by a table: within 10⁻⁶."""
    return np.interp(x, _POINTS, _NORMAL_CDF)


def _places(samples: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Each row of values as quantiles of the normal distribution, by the same row of sorted
    samples. Equal values have equal places."""
    ranks = (np.arange(samples.shape[1]) + 0.5) / samples.shape[1]
    scores = np.interp(ranks, _NORMAL_CDF, _POINTS)
    return np.stack([np.interp(v, s, scores) for v, s in zip(values, samples, strict=True)])


def _solve(rising: Callable[[float], float], wanted: float) -> float:
    """Where a rising function reaches a value, by bisection: from −8 to 8 standard deviations."""
    low, high = float(_POINTS[0]), float(_POINTS[-1])
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < wanted else (low, middle)
    return (low + high) / 2


def fewest_repeats(expected: Callable[[int], float]) -> int | None:
    """The fewest repeats that reach the wanted overlap, which rises with them."""
    least, most = 0, 1  # too few, and perhaps enough
    while expected(most) < WANTED_OVERLAP:
        if most == MOST_REPEATS:
            return None
        least, most = most, min(2 * most, MOST_REPEATS)
    while most - least > 1:
        middle = (least + most) // 2
        least, most = (least, middle) if expected(middle) >= WANTED_OVERLAP else (middle, most)
    return most
