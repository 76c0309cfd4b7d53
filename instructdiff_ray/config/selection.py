"""What is selected: `select`, and `baseline` for strategies that need other models."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from instructdiff_ray.errors import require

# In the order in which they look at a sample; selection/guards.py says what each looks for.
GUARDS = ("typical", "complete", "mismatched")
NO_GUARD = "none"
# Shares that are written with three digits (0.333 each of three domains) sum to 1.
ROUNDED_SUM = Fraction(1, 1000)


@dataclass
class SelectConfig:
    """How the pool is filtered and ranked.

    ratio: β, share of the pool that is selected.
    reject_ratio: γ, share of the pool that is cut at each end of ΔNLL; 0 switches the filter off.
    budget: what the ratio is a share of: `samples` (the paper), or response `tokens` (its authors'
        code), where the samples that are first in rank are taken until they hold that many.
    min_samples: of each domain at least, whatever the ratio says.
    max_samples: of each domain at most, whatever the ratio says.
    mixture: domain → its share of the whole selection, in the budget's unit. The ratio is then one
        of the whole pool; domains that are not named share the rest by their size, so nothing is
        selected of them where the shares sum to 1. None: each domain gives the ratio of itself.
    entropy: which end of ΔH, of what the filter leaves: lowest (the method), middle or highest.
    filter: what is cut at both ends: `nll` (ΔNLL, the method) or `ppl` (ΔPPL).
    exclude_warmup: select no sample that the first calibrated model was trained on; a baseline has
        none.
    guard: samples that are never selected, whatever their ΔH: typical, complete, mismatched, or a
        list of them; `none` is Algorithm 1 to the letter.
    """

    ratio: float = 0.1
    reject_ratio: float = 0.1
    budget: str = "samples"
    min_samples: int | None = None
    max_samples: int | None = None
    mixture: Any = None  # typed as a dict, OmegaConf can't replace the None
    entropy: str = "lowest"
    filter: str = "nll"
    exclude_warmup: bool = False
    guard: Any = "typical"

    def __post_init__(self) -> None:
        require(0 < self.ratio <= 1, f"select.ratio={self.ratio} must be in (0, 1]")
        require(
            0 <= self.reject_ratio < 0.5,
            f"select.reject_ratio={self.reject_ratio} must be in [0, 0.5)",
        )
        for name, choices in (
            ("budget", ("samples", "tokens")),
            ("entropy", ("lowest", "middle", "highest")),
            ("filter", ("nll", "ppl")),
        ):
            value = getattr(self, name)
            known = " or ".join(choices)
            require(value in choices, f"select.{name}={value} is not known; use {known}")
        named = [self.guard] if isinstance(self.guard, str) else self.guard
        known = " or ".join(GUARDS)
        require(
            self.guard == NO_GUARD
            or isinstance(named, list | tuple)
            and bool(named)
            and all(g in GUARDS for g in named),
            f"select.guard={self.guard} is not known; use {known}, a list of them, or {NO_GUARD}",
        )
        low, high = self.min_samples, self.max_samples
        require(low is None or low >= 1, f"select.min_samples={low} must be 1 or more")
        require(high is None or high >= 1, f"select.max_samples={high} must be 1 or more")
        require(
            low is None or high is None or low <= high,
            f"select.min_samples={low} is more than select.max_samples={high}",
        )
        if self.mixture is not None:
            self._check_mixture()

    @property
    def guards(self) -> tuple[str, ...]:
        """The guards in force, in the order of GUARDS."""
        named = self.guard if isinstance(self.guard, list) else [self.guard]
        return tuple(name for name in GUARDS if name in named)

    @property
    def shares(self) -> dict[str, Fraction]:
        """The mixture's, as they are written."""
        return {domain: Fraction(str(share)) for domain, share in (self.mixture or {}).items()}

    def mixture_sum(self) -> Fraction:
        """The sum of the shares as they are written; exactly 1 where only rounding keeps them from
        it."""
        total = sum(self.shares.values(), Fraction())
        return Fraction(1) if abs(total - 1) <= ROUNDED_SUM else total

    def _check_mixture(self) -> None:
        require(
            isinstance(self.mixture, dict) and bool(self.mixture),
            f"select.mixture={self.mixture} must be shares by domain: '{{math: 0.3, code: 0.5}}'",
        )
        self.mixture = {str(domain): share for domain, share in self.mixture.items()}
        for domain, share in self.mixture.items():
            require(
                isinstance(share, int | float) and share is not True and 0 < share <= 1,
                f"select.mixture.{domain}={share} must be in (0, 1]",
            )
        total = self.mixture_sum()
        require(
            total <= 1,
            f"the shares of select.mixture sum to {float(total):g}; they are shares of one"
            " selection, so make them sum to 1, or to less where other domains share the rest",
        )
        require(
            self.min_samples is None and self.max_samples is None,
            "select.mixture says how much each domain gives; leave out select.min_samples and"
            " select.max_samples",
        )

    def check_room(self, where: str = "") -> None:
        """Raises UserError where the filter, if there is one, leaves less than the ratio; `where`
        begins its message."""
        room = 1 - 2 * self.reject_ratio
        require(
            # 1 − 2γ is rounded: γ = 0.45 with β = 0.1 is exact on paper and must pass.
            self.ratio <= room or math.isclose(self.ratio, room),
            f"{where}select.ratio={self.ratio} is more than"
            f" select.reject_ratio={self.reject_ratio} leaves ({room:g} of the pool);"
            " lower one of them",
        )


@dataclass
class BaselineConfig:
    """What some strategies need besides the pool and the base model.

    small_model: scores for `superfiltering`; its authors take GPT-2.
    rating_models: rate for `selectit`, weighted by their size; none: the base model alone.
    """

    small_model: str = "openai-community/gpt2"
    rating_models: list[str] = field(default_factory=list)
