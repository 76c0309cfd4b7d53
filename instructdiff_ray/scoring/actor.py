"""The scoring actor: holds the models, takes a block of tokenised samples, gives their scores."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import pyarrow as pa
import torch
from ray.actor import ActorHandle
from transformers import PreTrainedModel

from instructdiff_ray.engine.batch import Batch, token_batches
from instructdiff_ray.engine.metrics import SampleScorer
from instructdiff_ray.engine.throughput import Usage, keep_freed_memory, matrix_product_rate
from instructdiff_ray.models.model import Model
from instructdiff_ray.sample import Reject
from instructdiff_ray.scoring.blocks import KILLS_SCORER, OUT_OF_MEMORY, score_columns, token_lists
from instructdiff_ray.scoring.crash_guard import MAX_DEATHS, Watched
from instructdiff_ray.scoring.plan import View

# A larger pass is no faster: the weights are read often enough as it is, and what lies between two
# layers leaves a processor's caches.
PAYING_TOKENS = {"cpu": 4096, "cuda": 32_768}
TRIAL = (16, 128)  # samples and tokens of each; a model may not see more positions
LETHAL = Reject(KILLS_SCORER, f"the scorer died {MAX_DEATHS} times on this sample alone")
TOO_LARGE = Reject(OUT_OF_MEMORY, "the device's memory does not hold this sample alone")


class Scorer:
    """A Ray Data actor. The models of a view share every prepared batch.

    precision: fp32 | bf16; tokens_per_batch: of one forward pass, None: as many as pay;
    actors_per_node: how many may share this machine's cores, without a GPU; gpus: this actor's
    share of one; watch: is told what is begun, so that a sample that kills this process is found.
    """

    def __init__(
        self,
        views: Sequence[View],
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
        self.views = views
        self.scorers = _load(views, precision, self.device)
        one = next(iter(self.scorers[0].values()))
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
        columns = {"sample_id": block["sample_id"]}
        for number in range(len(self.views)):
            columns.update(self._score_view(block, number))
        return pa.table(columns)

    def _score_view(self, block: pa.Table, number: int) -> dict[str, pa.Array]:
        ids, response = token_lists(block, number)
        scorers = self.scorers[number]
        scores: list[tuple[str, list[int], torch.Tensor]] = []
        rejects: dict[str, dict[int, Reject]] = {role: {} for role in scorers}
        lengths = [len(tokens) for tokens in ids]
        queue = deque(token_batches(lengths, self.tokens_per_batch))
        while queue:
            rows = queue.popleft()
            batch = Batch.of([ids[i] for i in rows], [response[i] for i in rows], self.device)
            for role, scorer in scorers.items():
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
                    rejects[role][rows[0]] = TOO_LARGE
        # Fetched at the end: a GPU goes on while the next batch is made ready.
        found = {role: self._no_scores(number, len(ids)) for role in scorers}
        for role, rows, result in scores:
            for column, of_batch in zip(found[role].values(), result.cpu().numpy(), strict=True):
                column[rows] = of_batch
        columns: dict[str, pa.Array] = {}
        for role, values in found.items():
            columns.update(score_columns(block, number, role, values, rejects[role]))
        return columns

    def _no_scores(self, number: int, rows: int) -> dict[str, np.ndarray]:
        return {name: np.full(rows, np.nan) for name in self.views[number].rendering.measures}

    def _count(self, scorer: SampleScorer, batch: Batch) -> None:
        tokens, scored = len(batch.tokens), len(batch.targets)
        each, more = scorer.operations
        self.usage.tokens += tokens
        self.usage.padded_tokens += (
            tokens if scorer.packed else len(batch.lengths) * max(batch.lengths)
        )
        self.usage.operations += each * tokens + more * scored

    def _score_singly(self, block: pa.Table) -> pa.Table:
        """This block has killed a scorer: find the sample that did, and the view of it."""
        tables = []
        for row in range(block.num_rows):
            one = block.slice(row, 1)
            columns = {"sample_id": one["sample_id"]}
            for number in range(len(self.views)):
                columns.update(self._score_alone(one, number))
            tables.append(pa.table(columns))
        return pa.concat_tables(tables)

    def _score_alone(self, one: pa.Table, number: int) -> dict[str, pa.Array]:
        name = f"{one['sample_id'][0]} (view {number})"
        if not self.watched.lethal(name):
            columns = self._score_view(one, number)
            self.watched.end(name, scored=True)
            return columns
        columns = {}
        for role in self.scorers[number]:
            nothing = self._no_scores(number, 1)
            columns.update(score_columns(one, number, role, nothing, {0: LETHAL}))
        return columns


def _load(
    views: Sequence[View], precision: str, device: torch.device
) -> list[dict[str, SampleScorer]]:
    """By view, a scorer for each role; a model and adapters of it share one copy of its weights."""
    models = {model.identity: model for view in views for model in view.models.values()}
    for model in models.values():
        model.check()
    adapted = {model.path: model for model in models.values() if model.adapter}
    loaded: dict[str, PreTrainedModel] = {}

    def make(model: Model, rating_tokens: list[int] | None) -> SampleScorer:
        shared = adapted.get(model.path, model)
        assert model.adapter in (None, shared.adapter), "one adapter at a time"
        if model.path not in loaded:
            loaded[model.path] = shared.load(precision, device)
        on = None if shared.adapter is None else model.adapter is not None
        return SampleScorer(loaded[model.path], rating_tokens, on)

    return [
        {role: make(model, view.rendering.rating_tokens()) for role, model in view.models.items()}
        for view in views
    ]


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
