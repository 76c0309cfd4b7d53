"""Guards: which samples are never selected, whatever their ΔH.

The lowest ΔH is where calibration has made the model less certain. That is what it can learn from,
and also what is no language at all. A guard gives each sample a value, in the filter's company: the
filter cuts the whole pool as ever, and of the band that it leaves a guard excludes what lies above
the guard's limit. Without a guard the selection is Algorithm 1 to the letter.

| guard        | value, higher is worse                                                | limit    |
|--------------|-----------------------------------------------------------------------|----------|
| `typical`    | surprise: how unlikely the response is to both models                 | domain's |
| `complete`   | ending_nll: NLL of the end behind the response, the calibrated model  | domain's |
| `mismatched` | ifd: NLL(y | x) / NLL(y) under the base model                         | 1        |

How well they do on spoilt pools is in docs/evidence.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from instructdiff_ray.selection.strategies import (
    ALONE,
    BASE,
    CALIBRATED,
    ENDING,
    StrategyBatch,
    ifd,
)

# Of what `typical` excludes, the share that a normal distribution would have had there.
FALSE_DISCOVERY_RATE = 0.1
# Standard deviations above the median that it tries as a limit, the least first.
DEVIATIONS = np.arange(2.0, 8.0, 0.01)
# Steps in which limit and null distribution are brought together; a handful is enough.
STEPS = 50
# A limit that would exclude more of a domain takes good samples of many kinds for bad ones.
MOST_EXCLUDED = 1 / 8
# Standard deviations above the median from which on `complete` excludes.
COMPLETE_DEVIATIONS = 3.0
# A response whose end has at least this probability is never called incomplete: a model that knows
# how responses end differs between them in hundredths of a nat.
LIKELY_END = 1 / 1000
NORMAL = NormalDist()
# A percentile of a normal distribution, one standard deviation below its median.
ONE_BELOW = 100 * NORMAL.cdf(-1)
# A domain with fewer values is too small to tell which of them are bad.
MIN_VALUES = 30
BELOW_ONE = float(np.nextafter(1.0, 0.0))


@dataclass(frozen=True)
class Guard:
    """Excludes the samples of a domain whose value is above its limit.

    measure: the value's name, a column of `ranking.parquet`.
    value: a batch → [N] fp64; NaN where nothing is known against a sample.
    limit: the values of a domain, NaNs left out → its limit; ∞ where it excludes nothing.
    scores: the names of the scores that the value is made of.
    """

    measure: str
    value: Callable[[StrategyBatch], np.ndarray]
    limit: Callable[[np.ndarray], float]
    scores: tuple[str, ...]

    @property
    def calibrates(self) -> bool:
        """Whether it looks at the calibrated model, which baselines have none of."""
        return bool({CALIBRATED, ENDING} & {*self.scores})


def surprise(batch: StrategyBatch) -> np.ndarray:
    """NLL_base + (NLL_cal − H_cal), nats per token.

    NLL − H is 0 in expectation where a model is right about its own uncertainty (the typical set;
    Meister et al., 2023, *Locally typical sampling*); text that is none of its language lies above.
    A model calibrated on noise expects noise, so the base model, which never saw it, is asked too.
    """
    excess = batch.score(CALIBRATED, "nll") - batch.score(CALIBRATED, "entropy")
    return batch.score(BASE, "nll") + excess


def ending_nll(batch: StrategyBatch) -> np.ndarray:
    """NLL of the end of the response, nats: of EOS, or a chat template's mark, where it stands."""
    return batch.score(ENDING, "nll")


def mismatch(batch: StrategyBatch) -> np.ndarray:
    """IFD; from 1 on, the prompt is no help to the response."""
    return np.where(np.isfinite(batch.score(ALONE, "nll")), ifd(batch), np.nan)


def false_discovery_limit(values: np.ndarray) -> float:
    """The lowest limit above which at most a share q of the values is what chance puts there.

    So it is low where many samples are bad and high where few are: no fixed number of deviations
    suits both. It is that of Benjamini and Hochberg (1995) under a null distribution that follows
    from the values (Efron, 2004, *Large-scale simultaneous hypothesis testing: the choice of a
    null*): the upper half of a normal one, with the median and the upper quartile of what is not
    above the limit, since good samples are often skewed to that side and bad ones would widen it.
    Limit and null follow from each other. They are found from below, beginning with the spread of
    the lower half, in which there are no bad samples: from above, many of them hide each other.
    Where too many would be excluded, the null is that of all values.
    """
    if len(values) < MIN_VALUES:
        return math.inf
    below, median = np.percentile(values, [ONE_BELOW, 50])
    limit, deviations = _benjamini_hochberg(values, float(median), float(median - below))
    for _ in range(STEPS):
        null = _null(values[values <= limit], deviations)
        previous, (limit, deviations) = limit, _benjamini_hochberg(values, *null)
        if limit == previous:
            break
    if np.mean(values > limit) <= MOST_EXCLUDED:
        return limit
    return _benjamini_hochberg(values, *_null(values, math.inf))[0]


def _null(values: np.ndarray, deviations: float) -> tuple[float, float]:
    """Median and standard deviation of the normal distribution that the values are from, of which
    what lies further above the median than so many deviations is cut off."""
    kept = NORMAL.cdf(deviations) if math.isfinite(deviations) else 1.0
    middle, upper = NORMAL.inv_cdf(0.5 * kept), NORMAL.inv_cdf(0.75 * kept)
    low, high = np.percentile(values, [50, 75])
    deviation = (high - low) / (upper - middle)
    return float(low - middle * deviation), float(deviation)


def _benjamini_hochberg(values: np.ndarray, median: float, deviation: float) -> tuple[float, float]:
    """The lowest of the limits that are tried above which few enough are there by chance, and its
    distance from the median in deviations; ∞ where there is none."""
    limits = median + DEVIATIONS * deviation
    tail = np.sort(values[values > limits[0]])  # a few per cent: no sort of them all
    excluded = len(tail) - np.searchsorted(tail, limits, side="right")
    by_chance = [math.erfc(x / math.sqrt(2)) / 2 * len(values) for x in DEVIATIONS]
    (allowed,) = np.nonzero((excluded > 0) & (by_chance <= FALSE_DISCOVERY_RATE * excluded))
    if not len(allowed):
        return math.inf, math.inf
    return float(limits[allowed[0]]), float(DEVIATIONS[allowed[0]])


def incomplete_limit(values: np.ndarray) -> float:
    """Three deviations above the median, as the values below it have them: cut-off responses lie
    above, where they would widen any measure of spread; and where an end is unlikely on any scale.
    """
    if len(values) < MIN_VALUES:
        return math.inf
    below, median = np.percentile(values, [ONE_BELOW, 50])
    limit = median + COMPLETE_DEVIATIONS * (median - below)
    return max(float(limit), -math.log(LIKELY_END))


GUARDS = {
    "typical": Guard("surprise", surprise, false_discovery_limit, (BASE, CALIBRATED)),
    "complete": Guard("ending_nll", ending_nll, incomplete_limit, (ENDING,)),
    "mismatched": Guard("ifd", mismatch, lambda _: BELOW_ONE, (BASE, ALONE)),
}
