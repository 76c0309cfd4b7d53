"""The scoring actor: holds the models, takes a block of tokenised samples, gives their scores."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np
import pyarrow as pa
import torch
from ray.actor import ActorHandle
from transformers import PreTrainedModel

from instructdiff_ray.batching import Batch, token_batches
from instructdiff_ray.blocks import as_lists, lethal_table, scores_table
from instructdiff_ray.models import Model
from instructdiff_ray.scoring import SampleScorer
from instructdiff_ray.throughput import Usage, keep_freed_memory, matrix_product_rate
from instructdiff_ray.watch import Watched

# A larger pass is no faster: the weights are read often enough as it is, and what lies between two
# layers leaves a processor's caches.
PAYING_TOKENS = {"cpu": 4096, "cuda": 32_768}
TRIAL = (16, 128)  # samples and tokens of each; a model may not see more positions


class Scorer:
    """A Ray Data actor. Its models share every prepared batch.

    models: role → model; measures: what is computed of each sample, NLL and entropy or the rating,
    of which rating_tokens are the tokens; precision: fp32 | bf16; tokens_per_batch: of one forward
    pass, None: as many as pay; actors_per_node: how many may share this machine's cores, without a
    GPU; gpus: this actor's share of one; watch: is told what is begun, so that a sample that kills
    this process is found.
    """

    def __init__(
        self,
        models: Mapping[str, Model],
        measures: Sequence[str],
        rating_tokens: list[int] | None,
        precision: str,
        tokens_per_batch: int | None,
        actors_per_node: int,
        gpus: float,
        watch: ActorHandle,
    ) -> None:
        # As configured: Ray hides no GPU from an actor that reserved none.
        if gpus:
            self.device = torch.device("cuda")
            torch.cuda.set_per_process_memory_fraction(float(gpus))
        else:
            self.device = torch.device("cpu")
            # Ray gives a worker one thread for each CPU that it reserves; a scorer may have more.
            torch.set_num_threads(max(1, (os.cpu_count() or 1) // actors_per_node))
            keep_freed_memory()
        self.usage = Usage()
        self.watched = Watched(watch)
        self.watched.begin_load()
        for model in models.values():
            model.check()
        self.measures = measures
        self.scorers = _load(models, precision, self.device, rating_tokens)
        one = next(iter(self.scorers.values()))
        self.tokens_per_batch = tokens_per_batch or paying_tokens(one, gpus)
        self.rate = matrix_product_rate(one.model)
        self.watched.end_load()
        self.free_since = time.monotonic()

    def __call__(self, block: pa.Table) -> pa.Table:
        """Gives each row once; what a block is before and after: blocks.py.

        The fields of Usage are columns too, whose sums are this block's.
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
        ids, response = as_lists(block["input_ids"]), as_lists(block["response"])
        scores: list[tuple[str, list[int], torch.Tensor]] = []
        too_large: dict[str, set[int]] = {role: set() for role in self.scorers}
        lengths = [len(tokens) for tokens in ids]
        queue = deque(token_batches(lengths, self.tokens_per_batch))
        while queue:
            rows = queue.popleft()
            batch = Batch.of([ids[i] for i in rows], [response[i] for i in rows], self.device)
            for role, scorer in self.scorers.items():
                try:
                    scores.append((role, rows, scorer.score(batch)))
                    self._count(scorer, batch)
                except torch.OutOfMemoryError:
                    if len(rows) > 1:
                        # Of this batch, for others may have been cut before the last halving.
                        half = len(rows) * batch.lengths[0] // 2
                        self.tokens_per_batch = min(self.tokens_per_batch, half)
                        middle = len(rows) // 2
                        queue.extendleft((rows[middle:], rows[:middle]))
                        break
                    too_large[role].update(rows)
        # Fetched at the end: a GPU goes on while the next batch is made ready.
        values = {role: np.full((len(self.measures), len(ids)), np.nan) for role in self.scorers}
        for role, rows, result in scores:
            values[role][:, rows] = result.cpu().numpy()
        return scores_table(block, self.measures, values, too_large)

    def _count(self, scorer: SampleScorer, batch: Batch) -> None:
        tokens, scored = len(batch.tokens), len(batch.targets)
        each, more = scorer.operations
        self.usage.tokens += tokens
        self.usage.padded_tokens += (
            tokens if scorer.packed else len(batch.lengths) * max(batch.lengths)
        )
        self.usage.operations += each * tokens + more * scored

    def _score_singly(self, block: pa.Table) -> pa.Table:
        """This block has killed a scorer: find the sample that did."""
        tables = []
        for row in range(block.num_rows):
            one = block.slice(row, 1)
            sample_id = one["sample_id"][0].as_py()
            if self.watched.lethal(sample_id):
                tables.append(lethal_table(one, self.measures, list(self.scorers)))
            else:
                tables.append(self._score(one))
                self.watched.end(sample_id, scored=True)
        return pa.concat_tables(tables)


def _load(
    models: Mapping[str, Model],
    precision: str,
    device: torch.device,
    rating_tokens: list[int] | None,
) -> dict[str, SampleScorer]:
    """A scorer for each role; a model and adapters of it share one copy of its weights."""
    adapted = {model.path: model for model in models.values() if model.adapter}
    loaded: dict[str, PreTrainedModel] = {}
    scorers = {}
    for role, model in models.items():
        shared = adapted.get(model.path, model)
        assert model.adapter in (None, shared.adapter), "one adapter at a time"
        if model.path not in loaded:
            loaded[model.path] = shared.load(precision, device)
        on = None if shared.adapter is None else model.adapter is not None
        scorers[role] = SampleScorer(loaded[model.path], rating_tokens, on)
    return scorers


def paying_tokens(scorer: SampleScorer, gpus: float) -> int:
    """Tokens of one forward pass: what a GPU's memory holds, by trial; but no more than make the
    pass faster."""
    most = PAYING_TOKENS[scorer.device.type]
    if scorer.device.type == "cpu":
        return most
    samples, length = TRIAL
    response = np.arange(length) > 0
    batch = Batch.of([np.zeros(length)] * samples, [response] * samples, scorer.device)
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()
    try:
        scorer.score(batch)
    except torch.OutOfMemoryError:
        return samples * length // 2  # and it is halved until it fits
    each = (torch.cuda.max_memory_allocated() - held) / (samples * length)
    room = 0.9 * gpus * torch.cuda.get_device_properties().total_memory - held
    return max(1, min(most, int(room / each)))
