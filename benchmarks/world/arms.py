"""What each strategy selects of the world's pool, by the library's own scoring and selection."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from transformers import PreTrainedModel

from benchmarks.world.model import encode
from benchmarks.world.population import Sample
from instructdiff_ray.config.selection import SelectConfig
from instructdiff_ray.engine.batch import Batch, token_batches
from instructdiff_ray.engine.metrics import SampleScorer
from instructdiff_ray.models.encoding import LIKELIHOOD
from instructdiff_ray.pool.partition import partition_file
from instructdiff_ray.pool.pool import INDEX, Pool
from instructdiff_ray.scoring.shards import shard_schema
from instructdiff_ray.scoring.spec import SCORES, ScoreTable
from instructdiff_ray.selection.batches import RankingInputs
from instructdiff_ray.selection.budgets import Size, domain_budgets
from instructdiff_ray.selection.ranking import rank, selected_ids
from instructdiff_ray.selection.select import take_within_budget
from instructdiff_ray.selection.strategies import (
    ALONE,
    BASE,
    ENDING,
    STRATEGIES,
    repeat_scores,
)
from instructdiff_ray.storage.artifacts import FinishedArtifact
from instructdiff_ray.storage.filesystem import Folder

TOKENS_PER_BATCH = 4096
INSTRUCTDIFF = "instructdiff"


@dataclass(frozen=True)
class Arm:
    """A strategy of the library with settings of `select`.

    rounds: of the method; the second calibrates on the selection of the first.
    repeats: calibrations by the mean of whose scores is ranked.
    """

    strategy: str
    guard: str = "none"
    entropy: str = "lowest"
    reject_ratio: float = 0.1
    rounds: int = 1
    repeats: int = 1

    def config(self, ratio: float) -> SelectConfig:
        """The settings that select this share of the pool's response tokens."""
        return SelectConfig(
            ratio=ratio,
            reject_ratio=self.reject_ratio,
            budget="tokens",
            entropy=self.entropy,
            guard=[self.guard] if self.guard != "none" else "none",
        )


ARMS = {
    "instructdiff": Arm(INSTRUCTDIFF, guard="typical"),
    "instructdiff, guard=none": Arm(INSTRUCTDIFF),
    "instructdiff, guard=complete": Arm(INSTRUCTDIFF, guard="complete"),
    "instructdiff, guard=mismatched": Arm(INSTRUCTDIFF, guard="mismatched"),
    "instructdiff, two rounds": Arm(INSTRUCTDIFF, guard="typical", rounds=2),
    "instructdiff, mean of 4 calibrations": Arm(INSTRUCTDIFF, guard="typical", repeats=4),
    "instructdiff, middle ΔH": Arm(INSTRUCTDIFF, guard="typical", entropy="middle"),
    "instructdiff, highest ΔH": Arm(INSTRUCTDIFF, guard="typical", entropy="highest"),
    "instructdiff, no filter": Arm(INSTRUCTDIFF, guard="typical", reject_ratio=0.0),
    "random": Arm("random"),
    "ifd": Arm("ifd"),
    "ppl_mid": Arm("ppl_mid"),
    "ppl_max": Arm("ppl_max"),
    "entropy_max": Arm("entropy_max"),
    "response_length": Arm("response_length"),
}
# Calibrations of the arm that has most.
REPEATS = max(arm.repeats for arm in ARMS.values())
# Arms that no strategy selects: all learnable samples without a fault, as far as the budget goes,
# and the whole pool.
ORACLE, FULL = "oracle", "full"


class WorldPool:
    """The pool and its scores, in a folder, as the pipeline leaves them."""

    def __init__(self, samples: Mapping[str, Sample], folder: Folder) -> None:
        self.samples = samples
        tokens = pa.array([len(s.response) for s in samples.values()], pa.int32())
        prompts = pa.array([len(s.prompt) for s in samples.values()], pa.int32())
        domain = pa.DictionaryArray.from_arrays(np.zeros(len(samples), np.int32), ["world"])
        self.ids, self.tokens = pa.array([*samples]), tokens
        index = pa.table([self.ids, domain, tokens, tokens, prompts], schema=INDEX)
        folder.write_table(partition_file("index", 0), index)
        counts = {"read": len(samples), "rejected": {}, "pool": len(samples), "truncated": 0}
        self.pool = Pool(folder, "world", "world", [], 1, False, counts)
        self.scores: dict[str, ScoreTable] = {}

    def score(self, base: PreTrainedModel) -> None:
        """The base model's scores, of whole samples and of responses alone."""
        self._write(BASE, _scores(base, [encode(*pair) for pair in self._pairs()]))
        self._write(ALONE, _scores(base, [encode("=", response) for _, response in self._pairs()]))

    def score_calibrated(self, model: PreTrainedModel, repeat: int = 0) -> None:
        """The scores of one repeat's model; of the first also those of the EOS behind a sample."""
        encoded = [encode(*pair) for pair in self._pairs()]
        self._write(repeat_scores(repeat), _scores(model, encoded))
        if repeat:
            return
        endings = [(ids, [False] * (len(ids) - 1) + [True]) for ids, _ in encoded]
        self._write(ENDING, _scores(model, endings))

    def select(self, arm: Arm, ratio: float, seed: int) -> list[str]:
        """The ids that the arm selects, by the scores that are there."""
        config, strategy = arm.config(ratio), STRATEGIES[arm.strategy]
        inputs = RankingInputs(
            strategy,
            lambda _: config,
            seed=seed,
            guards=config.guards,
            repeats=tuple(range(arm.repeats)),
        )
        return selected_ids(rank(self.pool, self.scores, inputs))

    def oracle(self, ratio: float, seed: int) -> list[str]:
        """Learnable samples without a fault, at random, within the same budget."""
        places = [n for n, s in enumerate(self.samples.values()) if s.kind == "learnable"]
        random.Random(seed).shuffle(places)
        tokens = self.tokens.to_numpy()
        size = Size(len(tokens), int(tokens.sum()))
        (budget,) = domain_budgets(
            {"": SelectConfig(ratio=ratio, budget="tokens")}, {"": size}
        ).values()
        taken = take_within_budget(iter(places), tokens, budget)
        return [self.ids[place].as_py() for place in taken]

    def _pairs(self) -> Iterator[tuple[str, str]]:
        return ((sample.prompt, sample.response) for sample in self.samples.values())

    def _write(self, name: str, scores: np.ndarray) -> None:
        folder, schema = self.pool.folder.sub(name), shard_schema(LIKELIHOOD)
        nulls = pa.nulls(len(self.ids), pa.string())
        columns = [self.ids, self.tokens, *map(pa.array, scores), nulls, nulls]
        folder.write_table(partition_file(SCORES, 0), pa.table(columns, schema=schema))
        self.scores[name] = ScoreTable(
            FinishedArtifact(name, folder, {"partitions": 1}), LIKELIHOOD
        )


def _scores(model: PreTrainedModel, encoded: list[tuple[list[int], list[bool]]]) -> np.ndarray:
    """NLL and entropy of each sample, [2, samples]."""
    # A copy, for a scorer changes the model's attention.
    scorer, scores = SampleScorer(copy.deepcopy(model)), np.empty((2, len(encoded)))
    for rows in token_batches([len(ids) for ids, _ in encoded], TOKENS_PER_BATCH):
        ids, scored = zip(*(encoded[row] for row in rows), strict=True)
        scores[:, rows] = scorer.score(Batch.of(ids, scored, torch.device("cpu"))).numpy()
    return scores
