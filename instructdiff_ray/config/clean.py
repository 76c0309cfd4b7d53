"""What of the pool goes though it is a valid sample: `clean`. All of it is off by default."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from instructdiff_ray.errors import require

# Below, almost any two texts of a kind would have to be compared.
LEAST_SIMILARITY = 0.5
# Fewer words in a row are an everyday phrase, and no trace of a benchmark.
LEAST_NGRAM = 5


@dataclass
class CleanConfig:
    """Which valid samples are left out of the pool, each as a reject with its reason.

    near_duplicates: a sample goes whose set of words, three in a row, is at least this much like
        that of an earlier sample that stays (Jaccard similarity, 0.5 to 1); None keeps all. Needs
        the extra `clean`.
    benchmarks: texts that no sample may contain: a file, folder, glob or dataset of the Hub as in
        `data.path`, all text in whose rows counts, or a `.txt` file, a text a line; or a list.
    ngram: so many words in a row that a sample and a benchmark's text have in common are a trace;
        shorter texts have rules of their own (docs/user-guide.md).
    languages: an ISO 639 code, or a list; a sample goes that is surely in none of them. Empty: all
        stay. Needs the extra `clean`.
    min_response_tokens: a sample goes whose responses have fewer together.
    max_response_tokens: a sample goes whose responses have more together.
    """

    near_duplicates: float | None = None
    benchmarks: Any = field(default_factory=list)
    ngram: int = 13
    languages: Any = field(default_factory=list)
    min_response_tokens: int | None = None
    max_response_tokens: int | None = None

    def __post_init__(self) -> None:
        self.benchmarks, self.languages = map(_listed, (self.benchmarks, self.languages))
        similarity, low, high = (
            self.near_duplicates,
            self.min_response_tokens,
            self.max_response_tokens,
        )
        require(
            similarity is None or LEAST_SIMILARITY <= similarity <= 1,
            f"clean.near_duplicates={similarity} must be in [{LEAST_SIMILARITY}, 1], or null",
        )
        require(
            self.ngram >= LEAST_NGRAM, f"clean.ngram={self.ngram} must be {LEAST_NGRAM} or more"
        )
        require(low is None or low >= 1, f"clean.min_response_tokens={low} must be 1 or more")
        require(high is None or high >= 1, f"clean.max_response_tokens={high} must be 1 or more")
        require(
            low is None or high is None or low <= high,
            f"clean.min_response_tokens={low} is more than clean.max_response_tokens={high}",
        )


def _listed(named: Any) -> list[str]:
    """One name or several, as a list."""
    several = named if isinstance(named, list | tuple) else [named]
    return [str(name) for name in several if name]
