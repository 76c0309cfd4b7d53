"""How much may be selected of each domain: a share of the domain itself (`select.ratio`), or, under
a mixture, a share of the whole selection (`select.mixture`). Pure functions of the domains' sizes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from instructdiff_ray.config.selection import SelectConfig
from instructdiff_ray.pool.sampling import floor_share

SAMPLES, TOKENS = "samples", "tokens"
# Rows that are counted at once.
CHUNK = 1 << 20


@dataclass(frozen=True)
class Size:
    """Of a domain: samples, and the tokens of their responses."""

    samples: int
    tokens: int

    def of(self, unit: str) -> int:
        return self.samples if unit == SAMPLES else self.tokens


@dataclass(frozen=True)
class Budget:
    """What may be selected of one domain.

    unit: SAMPLES, or TOKENS of responses, where samples are taken until they hold `size`.
    size: how many of these; least, most: samples, whatever the size says.
    share: of the whole selection, where a mixture says it.
    """

    unit: str
    size: int
    least: int
    most: int
    share: Fraction | None = None

    def samples(self, tokens: np.ndarray) -> int:
        """How many samples it buys. tokens: of the candidates, those wanted first first; looked at
        only where the unit is TOKENS."""
        count = self.size
        if self.unit == TOKENS and count:
            count = int(np.searchsorted(np.cumsum(tokens, dtype=np.int64), count)) + 1
        return max(self.least, min(count, self.most))


NOTHING = Budget(SAMPLES, 0, 0, 0)


def domain_sizes(domains: np.ndarray, tokens: np.ndarray, count: int) -> list[Size]:
    """By domain number, of `count` domains. domains: of each sample; tokens: of its response."""
    samples, total = np.zeros(count, np.int64), np.zeros(count, np.int64)
    for start in range(0, len(domains), CHUNK):
        rows = slice(start, start + CHUNK)
        samples += np.bincount(domains[rows], minlength=count)
        total += np.bincount(domains[rows], tokens[rows], count).astype(np.int64)
    return [Size(*size) for size in zip(samples.tolist(), total.tolist(), strict=True)]


def domain_budgets(
    configs: Mapping[str, SelectConfig], sizes: Mapping[str, Size]
) -> dict[str, Budget]:
    """The budget of each domain. Both: by its name."""
    config = next(iter(configs.values()))
    if config.mixture:
        return _mixed_budgets(config, sizes)
    return {name: _own_budget(configs[name], size) for name, size in sizes.items()}


def _own_budget(config: SelectConfig, size: Size) -> Budget:
    return Budget(
        config.budget,
        floor_share(config.ratio, size.of(config.budget)),
        config.min_samples or 1,
        size.samples if config.max_samples is None else config.max_samples,
    )


def _mixed_budgets(config: SelectConfig, sizes: Mapping[str, Size]) -> dict[str, Budget]:
    shares = mixture_shares(config, sizes)
    parts = largest_remainder(whole_budget(config, sizes), shares)
    return {
        name: Budget(config.budget, parts[name], 0, size.samples, shares[name])
        for name, size in sizes.items()
    }


def whole_budget(config: SelectConfig, sizes: Mapping[str, Size]) -> int:
    """What the ratio buys of all domains together, in the budget's unit."""
    return max(1, floor_share(config.ratio, sum(size.of(config.budget) for size in sizes.values())))


def mixture_shares(config: SelectConfig, sizes: Mapping[str, Size]) -> dict[str, Fraction]:
    """Each domain's share of the selection; those that the mixture does not name share the rest by
    their size."""
    written, total = config.shares, config.mixture_sum()
    scale = total / sum(written.values())  # 1, but where the sum is rounded
    unnamed = {name: s.of(config.budget) for name, s in sizes.items() if name not in written}
    rest = (1 - total) / max(1, sum(unnamed.values()))
    return {
        name: written[name] * scale if name in written else unnamed[name] * rest for name in sizes
    }


def largest_remainder(total: int, shares: Mapping[str, Fraction]) -> dict[str, int]:
    """`total` divided by shares that sum to 1 into whole parts that sum to it: each rounded down,
    and one more for those that lost most, of equal ones the first by name."""
    exact = {name: total * share for name, share in shares.items()}
    parts = {name: math.floor(part) for name, part in exact.items()}
    lost = math.floor(sum(exact.values())) - sum(parts.values())
    for name in sorted(exact, key=lambda n: (parts[n] - exact[n], n))[:lost]:
        parts[name] += 1
    return parts


def greatest_ratio(
    shares: Mapping[str, Fraction], whole: int, available: Mapping[str, int]
) -> float:
    """The greatest `select.ratio` at which every share of a mixture can be met, rounded down to
    three digits; 0 where there is none.

    whole: the size of all domains; available: of each, how much may be selected; in one unit.
    """
    ratios = (available[name] / (share * whole) for name, share in shares.items() if share)
    ratio = min(Fraction(1), *ratios)
    if not ratio:
        return 0.0
    scale = 10 ** (2 - math.floor(math.log10(ratio)))
    return math.floor(ratio * scale) / scale
