"""The scoring actor: holds the models, takes a block of tokenised samples, gives their scores."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict

import numpy as np
import pyarrow as pa
import torch
from ray.actor import ActorHandle

from instructdiff_ray.batching import token_batches
from instructdiff_ray.models import DTYPES, Model
from instructdiff_ray.scoring import SampleScorer
from instructdiff_ray.throughput import Usage, matrix_product_rate, operations_per_token
from instructdiff_ray.watch import MAX_DEATHS, Watched

# Reasons of samples that could not be scored.
KILLS_SCORER, NOT_FINITE, OUT_OF_MEMORY = "kills_scorer", "not_finite", "out_of_memory"


class Scorer:
    """A Ray Data actor. Its models share every prepared batch.

    models: role → model; precision: fp32 | bf16; tokens_per_batch: padded tokens of one forward
    pass; actors_per_node: how many may share this machine's cores, without a GPU; gpu: use one;
    watch: is told what is begun, so that a sample that kills this process is found.
    """

    def __init__(
        self,
        models: Mapping[str, Model],
        precision: str,
        tokens_per_batch: int,
        actors_per_node: int,
        gpu: bool,
        watch: ActorHandle,
    ) -> None:
        # As configured: Ray hides no GPU from an actor that reserved none.
        if gpu:
            device = torch.device("cuda")
        else:
            device = torch.device("cpu")
            # Ray gives a worker one thread for each CPU that it reserves; a scorer may have more.
            torch.set_num_threads(max(1, (os.cpu_count() or 1) // actors_per_node))
        self.tokens_per_batch = tokens_per_batch
        self.usage = Usage()
        self.watched = Watched(watch)
        self.watched.begin_load()
        for model in models.values():
            model.check()
        self.scorers = {
            role: SampleScorer(model.load(DTYPES[precision], device))
            for role, model in models.items()
        }
        self.rate = matrix_product_rate(next(iter(self.scorers.values())).model)
        self.watched.end_load()
        self.free_since = time.monotonic()

    def __call__(self, block: pa.Table) -> pa.Table:
        """block: (sample_id, input_ids, response) rows.

        Gives each row once: sample_id, response_tokens, and for each role `<role>_nll`,
        `<role>_entropy`, and where these are null `<role>_reason` and `<role>_detail`. The fields
        of Usage are columns too, whose sums are this block's.
        """
        name = f"block {block['sample_id'][0]}"
        died = self.watched.begin(name) > 1
        began = time.monotonic()
        self.usage = Usage(waited_s=began - self.free_since)
        scores = self._score_singly(block) if died else self._score(block)
        self.free_since = time.monotonic()
        self.usage.busy_s = self.free_since - began
        self.usage.possible = self.usage.busy_s * self.rate
        self.watched.end(name, scored=not died)
        for column, value in asdict(self.usage).items():
            scores = scores.append_column(column, pa.array([value] + [0.0] * (len(scores) - 1)))
        return scores

    def _score(self, block: pa.Table) -> pa.Table:
        ids, response = block["input_ids"].to_pylist(), block["response"].to_pylist()
        values = {role: np.empty((2, len(ids))) for role in self.scorers}
        too_large: dict[str, set[int]] = {role: set() for role in self.scorers}
        batches = deque(token_batches([len(tokens) for tokens in ids], self.tokens_per_batch))
        while batches:
            batch = batches.popleft()
            batch_ids, batch_response = [ids[i] for i in batch], [response[i] for i in batch]
            for role, scorer in self.scorers.items():
                try:
                    values[role][:, batch] = scorer.score(batch_ids, batch_response)
                    self._count(scorer, batch_ids, batch_response)
                except torch.OutOfMemoryError:
                    if len(batch) > 1:
                        # Of this batch, for others may have been cut before the last halving.
                        half = len(batch) * len(batch_ids[0]) // 2
                        self.tokens_per_batch = min(self.tokens_per_batch, half)
                        middle = len(batch) // 2
                        batches.extendleft((batch[middle:], batch[:middle]))
                        break
                    too_large[role].update(batch)
        return _table(block, values, too_large)

    def _count(
        self, scorer: SampleScorer, ids: list[list[int]], response: list[list[bool]]
    ) -> None:
        lengths = [len(tokens) for tokens in ids]
        each, scored = operations_per_token(scorer.model)
        self.usage.tokens += sum(lengths)
        self.usage.padded_tokens += len(lengths) * max(lengths)
        self.usage.operations += each * sum(lengths) + scored * sum(map(sum, response))

    def _score_singly(self, block: pa.Table) -> pa.Table:
        """This block has killed a scorer: find the sample that did."""
        tables = []
        for row in range(block.num_rows):
            one = block.slice(row, 1)
            sample_id = one["sample_id"][0].as_py()
            if self.watched.lethal(sample_id):
                tables.append(_lethal(one, list(self.scorers)))
            else:
                tables.append(self._score(one))
                self.watched.end(sample_id, scored=True)
        return pa.concat_tables(tables)


def _table(
    block: pa.Table, values: Mapping[str, np.ndarray], too_large: Mapping[str, set[int]]
) -> pa.Table:
    """values: role → [2, rows], NLL and entropy. One that is not finite is a reject.

    too_large: role → rows that the device's memory does not hold alone; rejects too.
    """
    columns = _measures(block)
    for role, (nll, entropy) in values.items():
        nll[list(too_large[role])] = np.nan
        bad = ~(np.isfinite(nll) & np.isfinite(entropy))
        told = [
            _why(row, role, too_large[role]) if b else (None, None) for row, b in enumerate(bad)
        ]
        columns[f"{role}_nll"] = pa.array(nll, mask=bad)
        columns[f"{role}_entropy"] = pa.array(entropy, mask=bad)
        columns[f"{role}_reason"] = pa.array([reason for reason, _ in told], pa.string())
        columns[f"{role}_detail"] = pa.array([detail for _, detail in told], pa.string())
    return pa.table(columns)


def _why(row: int, role: str, too_large: set[int]) -> tuple[str, str]:
    if row in too_large:
        return OUT_OF_MEMORY, "the device's memory does not hold this sample alone"
    line = f"NLL or entropy under the {role} model is not finite; cluster.precision=fp32 may help"
    return NOT_FINITE, line


def _lethal(one: pa.Table, roles: list[str]) -> pa.Table:
    columns = _measures(one)
    for role in roles:
        for name in ("nll", "entropy"):
            columns[f"{role}_{name}"] = pa.array([None], pa.float64())
        columns[f"{role}_reason"] = pa.array([KILLS_SCORER])
        detail = f"the scorer died {MAX_DEATHS} times on this sample alone"
        columns[f"{role}_detail"] = pa.array([detail])
    return pa.table(columns)


def _measures(block: pa.Table) -> dict[str, pa.Array]:
    response = block["response"].to_pylist()
    return {
        "sample_id": block["sample_id"],
        "response_tokens": pa.array(map(sum, response), pa.int32()),
    }
