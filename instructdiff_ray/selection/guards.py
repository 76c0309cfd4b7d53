"""Guards: which samples are never selected, whatever their ΔH.

The lowest ΔH is where calibration has made the model less certain. That is what it can learn from,
and also what is no language at all. A guard gives each sample a value, in the filter's company: the
filter cuts the whole pool as ever, and of the band that it leaves a guard excludes what lies above
the guard's limit. Without a guard the selection is Algorithm 1 to the letter.

| guard        | value, higher is worse                                                | limit    |
|--------------|-----------------------------------------------------------------------|----------|
| `typical`    | surprise: NLL, and its excess over the entropy after calibration      | domain's |
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
FALSE_DISCOVERY_RATE = 0.02
# Standard deviations above the median that it tries as a limit, the least first.
DEVIATIONS = np.arange(2.0, 8.0, 0.01)
# Standard deviations above the median from which on `complete` excludes.
COMPLETE_DEVIATIONS = 3.0
# A response whose end has at least this probability is never called incomplete: a model that knows
# how responses end differs between them in hundredths of a nat.
LIKELY_END = 1 / 1000
# The percentile of a normal distribution that is one standard deviation below its median.
ONE_BELOW = 100 * NormalDist().cdf(-1)
# A domain with fewer values is too small to tell which of them are bad.
MIN_VALUES = 100
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
    known = np.isfinite(batch.score(BASE, "nll")) & np.isfinite(batch.score(ALONE, "nll"))
    return np.where(known, ifd(batch), np.nan)


def false_discovery_limit(values: np.ndarray) -> float:
    """The lowest limit above which chance would put at most FALSE_DISCOVERY_RATE of the values
    that are there.

    So it is low where many samples are bad and high where few are: no fixed number of deviations
    suits both. It is that of Benjamini and Hochberg (1995) under a normal null distribution with
    the median and the spread of the lower half, whose samples are taken for good ones (an empirical
    null: Efron, 2004, *Large-scale simultaneous hypothesis testing: the choice of a null*). ∞ where
    the domain is too small, or half of its values are the same.
    """
    if len(values) < MIN_VALUES:
        return math.inf
    median, deviation = _lower_half(values)
    if not deviation:
        return math.inf
    limits = median + DEVIATIONS * deviation
    tail = np.sort(values[values > limits[0]])  # a few per cent: no sort of them all
    excluded = len(tail) - np.searchsorted(tail, limits, side="right")
    by_chance = [math.erfc(x / math.sqrt(2)) / 2 * len(values) for x in DEVIATIONS]
    (allowed,) = np.nonzero((excluded > 0) & (by_chance <= FALSE_DISCOVERY_RATE * excluded))
    return float(limits[allowed[0]]) if len(allowed) else math.inf


def incomplete_limit(values: np.ndarray) -> float:
    """Three deviations above the median; and where an end is unlikely on any scale."""
    if len(values) < MIN_VALUES:
        return math.inf
    median, deviation = _lower_half(values)
    return max(median + COMPLETE_DEVIATIONS * deviation, -math.log(LIKELY_END))


def _lower_half(values: np.ndarray) -> tuple[float, float]:
    """Their median, and their standard deviation as the values below it have it: bad samples lie
    above, where they would widen any measure of spread."""
    below, median = np.percentile(values, [ONE_BELOW, 50])
    return float(median), float(median - below)


GUARDS = {
    "typical": Guard("surprise", surprise, false_discovery_limit, (BASE, CALIBRATED)),
    "complete": Guard("ending_nll", ending_nll, incomplete_limit, (ENDING,)),
    "mismatched": Guard("ifd", mismatch, lambda _: BELOW_ONE, (BASE, ALONE)),
}
