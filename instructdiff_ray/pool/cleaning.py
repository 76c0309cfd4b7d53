"""Which valid samples stay out of the pool because `clean` says so, and what that adds to its key.

What a row alone tells is told here; near-duplicates are a thing of the whole pool
(near_duplicates.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from instructdiff_ray.config.clean import CleanConfig
from instructdiff_ray.pool.benchmarks import load_benchmarks
from instructdiff_ray.pool.contamination import Benchmarks
from instructdiff_ray.pool.language import PACKAGE as LANGUAGES_PACKAGE
from instructdiff_ray.pool.language import check_languages, foreign
from instructdiff_ray.pool.similarity import PACKAGE as SIMILARITY_PACKAGE
from instructdiff_ray.pool.similarity import check_similarity
from instructdiff_ray.sample import Part, Reject

VERSION = 1  # of what is cleaned away; raise it when the same settings leave another pool
# Why samples go that are valid: nothing is wrong with them.
REASONS = ("short_response", "long_response", "language", "contaminated", "near_duplicate")


def check_clean(clean: CleanConfig) -> None:
    """Raises UserError where a package is missing or a language is not known."""
    check_languages(clean.languages)
    check_similarity(clean.near_duplicates)


def key_inputs(clean: CleanConfig) -> dict[str, Any]:
    """What it adds to the key of a pool, as JSON values: of each setting that is on what its result
    depends on, and nothing where all are off."""
    inputs: dict[str, Any] = {}
    if clean.languages:
        inputs["languages"] = [*sorted({*clean.languages}), version(LANGUAGES_PACKAGE)]
    if benchmarks := load_benchmarks(clean):
        inputs["benchmarks"] = [clean.ngram, benchmarks.digest]
    if clean.near_duplicates is not None:
        inputs["near_duplicates"] = [clean.near_duplicates, version(SIMILARITY_PACKAGE)]
    for name in ("min_response_tokens", "max_response_tokens"):
        if (limit := getattr(clean, name)) is not None:
            inputs[name] = limit
    return {"clean": {"version": VERSION, **inputs}} if inputs else {}


@dataclass(frozen=True)
class RowFilters:
    """What is asked of each sample by itself."""

    clean: CleanConfig
    benchmarks: Benchmarks | None = None

    @classmethod
    def of(cls, clean: CleanConfig) -> RowFilters:
        """As configured, with the texts of benchmarks."""
        return cls(clean, load_benchmarks(clean))

    def check(
        self, samples: Sequence[Sequence[Part]], response_tokens: Sequence[int]
    ) -> list[Reject | None]:
        """Why each sample goes; None: it stays."""
        found = [self._alone(*sample) for sample in zip(samples, response_tokens, strict=True)]
        if self.benchmarks is None:
            return found
        left = [number for number, reject in enumerate(found) if reject is None]
        traces = self.benchmarks.check([samples[number] for number in left])
        for number, reject in zip(left, traces, strict=True):
            found[number] = reject
        return found

    def _alone(self, parts: Sequence[Part], tokens: int) -> Reject | None:
        low, high = self.clean.min_response_tokens, self.clean.max_response_tokens
        if low is not None and tokens < low:
            detail = f"{tokens} response tokens, less than clean.min_response_tokens={low}"
            return Reject("short_response", detail)
        if high is not None and tokens > high:
            detail = f"{tokens} response tokens, more than clean.max_response_tokens={high}"
            return Reject("long_response", detail)
        return foreign(parts, self.clean.languages) if self.clean.languages else None
