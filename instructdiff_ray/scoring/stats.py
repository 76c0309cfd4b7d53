"""What scoring cost in one command."""

from __future__ import annotations

from dataclasses import dataclass, field

from instructdiff_ray.engine.throughput import Throughput


@dataclass
class ScoringStats:
    """Adds up what scorers report.

    samples: forward passes by the name of the scores; throughput: of all scorers together;
    forward_passes: in what ways samples were scored, by the name of the scores, as
    `SampleScorer.forward_pass` describes them: several where machines differ.
    """

    samples: dict[str, int] = field(default_factory=lambda: {"base": 0, "calibrated": 0})
    throughput: Throughput = field(default_factory=Throughput)
    forward_passes: dict[str, list[str]] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """Prompt and response, counted once for each model."""
        return round(self.throughput.tokens)

    def add_samples(self, name: str, count: int) -> None:
        self.samples[name] = self.samples.get(name, 0) + count

    def add_forward_pass(self, name: str, description: str) -> None:
        descriptions = self.forward_passes.setdefault(name, [])
        if description not in descriptions:
            descriptions.append(description)
