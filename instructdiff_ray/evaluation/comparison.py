"""What an evaluation has found out, and the arms compared by it: pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

import numpy as np

from instructdiff_ray.evaluation.arms import MATCHINGS, SelectingCost
from instructdiff_ray.evaluation.intervals import Difference, paired_differences, seed_difference
from instructdiff_ray.results.compare import ALL

UNTRAINED = "untrained"


@dataclass(frozen=True)
class HeldOut:
    """The held-out samples, in the order of sample_id; tokens: of their responses."""

    sample_ids: np.ndarray
    domains: np.ndarray
    tokens: np.ndarray

    def masks(self) -> dict[str, np.ndarray]:
        """Those of each domain, and of all where there are several."""
        names = np.unique(self.domains)
        masks = {str(name): self.domains == name for name in names}
        return masks if len(names) == 1 else {ALL: np.full(len(self.domains), True), **masks}


@dataclass(frozen=True)
class Trained:
    """One model's result.

    matchings: the comparisons in which it stands.
    samples, response_tokens: trained on; tokens: of prompts and responses, each epoch's.
    cost: of selecting them.
    model: its folder.
    nll_sums: [N], of each held-out response the NLL of its tokens together, nats.
    benchmarks: by task and metric.
    """

    arm: str
    matchings: Sequence[str]
    seed: int
    samples: int
    response_tokens: int
    tokens: int
    cost: SelectingCost
    model: str
    nll_sums: np.ndarray
    benchmarks: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """All that was found out.

    arms: as configured, their first strategy is `reference`, which says how much the others are
        trained on; baseline: the arm from which differences are taken.
    results: of the untrained model, then by seed and arm.
    """

    arms: Sequence[str]
    reference: str
    baseline: str
    held_out: HeldOut
    results: Sequence[Trained]

    def of_arm(self, arm: str, matching: str) -> list[Trained]:
        """Its models in this comparison, seed by seed."""
        return [r for r in self.results if r.arm == arm and matching in r.matchings]


@dataclass(frozen=True)
class Comparison:
    """One arm under one measure.

    measure: a domain's name, or ALL, whose NLL it is, nats a token; or a task and its metric.
    by_seed: the arm's figures; difference: from the baseline's, seed by seed; None for itself.
    """

    arm: str
    matching: str
    measure: str
    is_nll: bool
    by_seed: Sequence[float]
    difference: Difference | None

    @property
    def mean(self) -> float:
        return fmean(self.by_seed)


def compare_arms(evaluation: Evaluation) -> list[Comparison]:
    """Every arm and the untrained model under every measure, at as many samples and at as many
    response tokens."""
    names = [UNTRAINED, *evaluation.arms]
    found = []
    for matching in MATCHINGS:
        models = {name: evaluation.of_arm(name, matching) for name in names}
        for domain, mask in evaluation.held_out.masks().items():
            sums = {
                name: np.stack([model.nll_sums[mask] for model in results])
                for name, results in models.items()
            }
            tokens = evaluation.held_out.tokens[mask]
            base = sums[evaluation.baseline]
            others = [name for name in names if name != evaluation.baseline]
            # The one untrained model stands against every seed's.
            differences = paired_differences(np.stack([sums[o] - base for o in others]), tokens)
            by_name = dict(zip(others, differences, strict=True))
            for name in names:
                by_seed = (sums[name].sum(axis=1) / tokens.sum()).tolist()
                found.append(Comparison(name, matching, domain, True, by_seed, by_name.get(name)))
        found += _benchmarks(models, matching, evaluation.baseline)
    return found


def _benchmarks(
    models: Mapping[str, Sequence[Trained]], matching: str, baseline: str
) -> list[Comparison]:
    found = []
    for metric in models[UNTRAINED][0].benchmarks:
        scores = {name: [m.benchmarks[metric] for m in ms] for name, ms in models.items()}
        base = np.array(scores[baseline])
        for name, by_seed in scores.items():
            differences = (np.array(by_seed) - base).tolist()
            difference = None if name == baseline else seed_difference(differences)
            found.append(Comparison(name, matching, metric, False, by_seed, difference))
    return found
