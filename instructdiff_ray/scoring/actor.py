"""The scoring actor: holds the models, takes a block of tokenised samples, gives their scores."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

import numpy as np
import pyarrow as pa
import torch
from ray.actor import ActorHandle
from transformers import PreTrainedModel

from instructdiff_ray.engine.batch import Batch, token_batches
from instructdiff_ray.engine.device import device_failed, require_gpu
from instructdiff_ray.engine.lm_head import without_outer_hook
from instructdiff_ray.engine.memory import USABLE
from instructdiff_ray.engine.metrics import NO_ADAPTER, SampleScorer
from instructdiff_ray.engine.throughput import Throughput, keep_freed_memory, matmul_rate
from instructdiff_ray.models.model import Model
from instructdiff_ray.sample import Reject
from instructdiff_ray.scoring.blocks import KILLS_SCORER, OUT_OF_MEMORY, score_columns, token_lists
from instructdiff_ray.scoring.crash_guard import MAX_DEATHS, CrashGuardClient
from instructdiff_ray.scoring.plan import ScoreTarget, Targets, by_encoding

# A larger pass is no faster: the weights are read often enough as it is, and what lies between two
# layers leaves a processor's caches.
PAYING_TOKENS = {"cpu": 4096, "cuda": 32_768}
TRIAL = (16, 128)  # samples and tokens of each; a model may not see more positions
KILLED = Reject(KILLS_SCORER, f"the scorer died {MAX_DEATHS} times on this sample alone")
TOO_LARGE = Reject(OUT_OF_MEMORY, "the device's memory does not hold this sample alone")


class Scorer:
    """A Ray Data actor. Models that read samples in the same form share every batch.

    precision: fp32 | bf16; tokens_per_batch: of one forward pass, None: as many as pay;
    actors_per_node: how many may share this machine's cores, without a GPU; gpus: this actor's
    share of one, or their number, over which each model is spread; guard: is told what is begun, so
    that a sample that kills this process is found.
    """

    def __init__(
        self,
        targets: Targets,
        precision: str,
        tokens_per_batch: int | None,
        actors_per_node: int,
        gpus: float,
        guard: ActorHandle,
    ) -> None:
        self.device = scoring_device(actors_per_node, gpus, precision)
        self.first_block = True
        self.throughput = Throughput()
        self.tokens: Counter[str] = Counter()  # by target
        self.guard = CrashGuardClient(guard)
        self.guard.begin_load()
        self.encodings = list(by_encoding(targets))
        self.scorers = load_scorers(targets, precision, self.device, spread=gpus > 1)
        self.forward_passes = {
            name: scorer.forward_pass() for group in self.scorers for name, scorer in group.items()
        }
        first = next(iter(self.scorers[0].values()))
        self.tokens_per_batch = tokens_per_batch or paying_tokens(first, gpus)
        self.rate = max(1, gpus) * matmul_rate(first.model)
        self.guard.end_load()
        self.free_since = time.monotonic()

    def __call__(self, block: pa.Table) -> pa.Table:
        """Gives each row once; what a block is before and after: blocks.py.

        The fields of Throughput are columns too, and the tokens of each target's forward passes;
        their sums are this block's.
        """
        with ending_with_the_device():
            return self._call(block)

    def _call(self, block: pa.Table) -> pa.Table:
        name = f"block {block['sample_id'][0]}"
        died = self.guard.begin(name) > 1
        began = time.monotonic()
        self.throughput = Throughput(waited_s=began - self.free_since)
        self.tokens = Counter()
        scores = self._score_singly(block) if died else self._score(block)
        self.free_since = time.monotonic()
        self.throughput.busy_s = self.free_since - began
        self.throughput.possible = self.throughput.busy_s * self.rate
        # With its first block, so that the sum over all blocks is their number.
        self.throughput.scorers, self.first_block = float(self.first_block), False
        self.guard.end(name, scored=not died)
        sums = asdict(self.throughput) | {
            f"{name}_tokens": float(self.tokens[name]) for name in self.forward_passes
        }
        for column, value in sums.items():
            scores = scores.append_column(column, pa.array([value] + [0.0] * (len(scores) - 1)))
        for name, description in self.forward_passes.items():
            column = pa.repeat(description, len(scores))
            scores = scores.append_column(f"{name}_forward_pass", column)
        return scores

    def _score(self, block: pa.Table) -> pa.Table:
        columns = {"sample_id": block["sample_id"]}
        for number in range(len(self.encodings)):
            columns.update(self._score_encoding(block, number))
        return pa.table(columns)

    def _score_encoding(self, block: pa.Table, number: int) -> dict[str, pa.Array]:
        ids, response = token_lists(block, number)
        scorers = self.scorers[number]
        scores: list[tuple[str, list[int], torch.Tensor]] = []
        rejects: dict[str, dict[int, Reject]] = {name: {} for name in scorers}
        lengths = [len(tokens) for tokens in ids]
        queue = deque(token_batches(lengths, self.tokens_per_batch))
        while queue:
            rows = queue.popleft()
            batch = Batch.of([ids[i] for i in rows], [response[i] for i in rows], self.device)
            for name, scorer in scorers.items():
                try:
                    scores.append((name, rows, scorer.score(batch)))
                    self._count(name, scorer, batch)
                except torch.OutOfMemoryError:
                    if len(rows) > 1:
                        # Of this batch, for others may have been cut before the last halving.
                        half = len(rows) * batch.lengths[0] // 2
                        self.tokens_per_batch = min(self.tokens_per_batch, half)
                        middle = len(rows) // 2
                        queue.extendleft((rows[middle:], rows[:middle]))
                        break
                    rejects[name][rows[0]] = TOO_LARGE
        # Fetched at the end: a GPU goes on while the next batch is made ready.
        measured = {name: self._no_scores(number, len(ids)) for name in scorers}
        for name, rows, result in scores:
            for column, of_batch in zip(measured[name].values(), result.cpu().numpy(), strict=True):
                column[rows] = of_batch
        columns: dict[str, pa.Array] = {}
        for name, values in measured.items():
            columns.update(score_columns(block, number, name, values, rejects[name]))
        return columns

    def _no_scores(self, number: int, rows: int) -> dict[str, np.ndarray]:
        return {name: np.full(rows, np.nan) for name in self.encodings[number].measures}

    def _count(self, name: str, scorer: SampleScorer, batch: Batch) -> None:
        tokens, scored = len(batch.tokens), len(batch.targets)
        self.tokens[name] += tokens
        per_token, per_scored = scorer.operations
        self.throughput.tokens += tokens
        self.throughput.padded_tokens += (
            tokens if scorer.packed else len(batch.lengths) * max(batch.lengths)
        )
        self.throughput.operations += per_token * tokens + per_scored * scored

    def _score_singly(self, block: pa.Table) -> pa.Table:
        """This block has killed a scorer: find the sample that did, and in which encoding."""
        tables = []
        for row in range(block.num_rows):
            sample = block.slice(row, 1)
            columns = {"sample_id": sample["sample_id"]}
            for number in range(len(self.encodings)):
                columns.update(self._score_alone(sample, number))
            tables.append(pa.table(columns))
        return pa.concat_tables(tables)

    def _score_alone(self, sample: pa.Table, number: int) -> dict[str, pa.Array]:
        name = f"{sample['sample_id'][0]} (encoding {number})"
        if not self.guard.quarantined(name):
            columns = self._score_encoding(sample, number)
            self.guard.end(name, scored=True)
            return columns
        columns = {}
        for target in self.scorers[number]:
            no_scores = self._no_scores(number, 1)
            columns.update(score_columns(sample, number, target, no_scores, {0: KILLED}))
        return columns


@contextmanager
def ending_with_the_device() -> Iterator[None]:
    """Ends this process where its device is lost to it, which shows at any call after the fault:
    Ray starts another, which gets the block again, and the crash guard sees to it that this ends.
    """
    try:
        yield
    except RuntimeError as error:
        if not device_failed(error):
            raise
        print(f"the device failed, a new scorer is started: {error}", file=sys.stderr, flush=True)
        os._exit(1)


def scoring_device(actors_per_node: int, gpus: float, precision: str) -> torch.device:
    """The device to score on, made ready; the arguments as of `Scorer`.

    Raises UserError where torch can't use the GPU.
    """
    # As configured: Ray hides no GPU from an actor that reserved none.
    if gpus:
        require_gpu(precision)
        for number in range(max(1, int(gpus))):
            torch.cuda.set_per_process_memory_fraction(min(1.0, gpus), number)
        return torch.device("cuda")
    # Ray gives a worker one thread for each CPU that it reserves; a scorer may have more.
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // actors_per_node))
    keep_freed_memory()
    return torch.device("cpu")


def load_scorers(
    targets: Targets, precision: str, device: torch.device, spread: bool = False
) -> list[dict[str, SampleScorer]]:
    """By encoding, a scorer for each target; a model and adapters of it share one copy of its
    weights. spread: over all GPUs of this process."""
    sharing: dict[str, dict[str, Model]] = defaultdict(dict)
    for model in (target.model for target in targets):
        model.check()
        sharing[model.path][model.identity] = model
    loaded: dict[str, PreTrainedModel] = {}
    for path, models in sharing.items():
        first, *beside = models.values()
        loaded[path] = first.load(precision, device, beside, spread)
        if spread:
            without_outer_hook(loaded[path])

    def make(target: ScoreTarget) -> SampleScorer:
        model, rating_tokens = target.model, target.encoding.rating_tokens()
        adapted = any(other.adapter for other in sharing[model.path].values())
        named = model.adapter_name if model.adapter else NO_ADAPTER
        return SampleScorer(loaded[model.path], rating_tokens, named if adapted else None)

    return [
        {target.name: make(target) for target in group} for group in by_encoding(targets).values()
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
    devices = range(max(1, int(gpus)))
    held = []
    for number in devices:
        torch.cuda.reset_peak_memory_stats(number)
        held.append(torch.cuda.memory_allocated(number))
    try:
        scorer.score(batch)
    except torch.OutOfMemoryError:
        return samples * length // 2  # and it is halved until it fits
    fitting = []
    for number in devices:
        of_trial = torch.cuda.max_memory_allocated(number) - held[number]
        total = torch.cuda.get_device_properties(number).total_memory
        room = USABLE * min(1.0, gpus) * total - held[number]
        fitting.append(int(room * samples * length / max(1, of_trial)))
    return max(1, min(most, *fitting))
