"""The scoring mathematics: mean NLL and mean entropy of response tokens. Knows no Ray.

    NLL(x, y) = −(1/|y|) Σ_t log π(y_t | x, y_<t)
    H(x, y)   = −(1/|y|) Σ_t Σ_v π(v | x, y_<t) log π(v | x, y_<t)

both in nats, over the response tokens y (method's Nouns; paper, §3). The model's body runs once
over the batch; only the positions before a response token go through the output head, a tile of
positions and words at a time, so that no tensor of tokens × vocabulary ever exists.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from instructdiff_ray.batching import Batch
from instructdiff_ray.head import Tile, own_head
from instructdiff_ray.packing import pack, packed_hidden
from instructdiff_ray.throughput import operations_per_token

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Positions that go through the head together: enough that reading a tile of the head's weights is
# no cost beside multiplying with them.
SLICE_POSITIONS = {"cpu": 1024, "cuda": 4096}
# Logits of one tile: near the cores of a CPU, and on a GPU no more than it needs to be busy.
TILE_BYTES = {"cpu": 4 << 20, "cuda": 128 << 20}
# A masked-out word has logit −inf; this has the same probability, 0, and a finite product with it.
MASKED = -1e30


class Statistics:
    """Sums over the vocabulary at some positions, a tile at a time, in fp32.

    With m the largest logit so far and d = z − m, keeps m, s = Σ exp d, u = Σ d exp d and the
    targets' logits; so log Z = m + log s, and H = log Z − Σ p z = log s − u / s.
    """

    def __init__(self, targets: Tensor) -> None:
        self.targets = targets
        self.sums = tuple(
            torch.full_like(targets, value, dtype=torch.float32) for value in (MASKED, 0, 0, 0)
        )
        self.add_up = fused() if targets.is_cuda else add_up

    def add(self, logits: Tensor, first: int = 0) -> None:
        """logits: [positions, words] of the words from number `first` on; is overwritten."""
        self.sums = self.add_up(logits, self.targets - first, *self.sums)

    def nll_and_entropy(self) -> tuple[Tensor, Tensor]:
        """At each position, in nats."""
        largest, total, weighted, target_logits = self.sums
        log_sum = total.log()
        return largest + log_sum - target_logits, log_sum - weighted / total


def add_up(
    logits: Tensor,
    places: Tensor,
    largest: Tensor,
    total: Tensor,
    weighted: Tensor,
    target_logits: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The sums m, s, u and the targets' logits with one tile more. places: of the targets in it."""
    logits = logits.float()
    last = logits.shape[-1] - 1
    found = logits.gather(-1, places.clamp(0, last).unsqueeze(-1)).squeeze(-1)
    target_logits = torch.where((places >= 0) & (places <= last), found, target_logits)
    logits = logits.clamp_min_(MASKED)  # behind the targets: a masked one has no finite NLL
    now = torch.maximum(largest, logits.amax(-1))
    risen = largest - now
    shifted = logits.sub_(now.unsqueeze(-1))
    powers = shifted.exp()
    weighted = risen.exp() * (weighted + total * risen) + shifted.mul_(powers).sum(-1)
    total = total * risen.exp() + powers.sum(-1)
    return now, total, weighted, target_logits


@cache
def fused() -> Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]:
    """`add_up` compiled: two passes over a tile of bf16 logits instead of ten over one in fp32."""
    compiled: Callable[..., Any] = torch.compile(add_up, dynamic=True)
    return compiled


def token_nll_and_entropy(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """NLL of the target and entropy at each position, in fp32 whatever the logits' type.

    logits: [positions, vocabulary]; targets: [positions], token ids. Results: [positions], nats.
    """
    statistics = Statistics(targets)
    statistics.add(logits.clone())
    return statistics.nll_and_entropy()


class SampleScorer:
    """Scores batches of encoded samples with one model, on the device that holds it.

    packed: whether the model takes samples without padding; operations: of its matrix products, as
    `operations_per_token` gives them.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.device = next(model.parameters()).device
        self.slice = SLICE_POSITIONS[self.device.type]
        row = TILE_BYTES[self.device.type] // self.slice
        self.head = own_head(model, row // model.dtype.itemsize)
        self.packed = self.head is not None and pack(model)
        self.operations = operations_per_token(model)

    @torch.inference_mode()
    def score(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Mean NLL and mean entropy of each sample's response tokens.

        Both results: fp64 [samples] on the device, nats; what computes them may still be under way.
        """
        if self.head is None:
            nll, entropy = self._score_full(batch)
        else:
            hidden = self._hidden(batch)[batch.contexts]
            nll, entropy = self._score_positions(self.head, hidden, batch.targets)
        return _mean_by_row(nll, batch), _mean_by_row(entropy, batch)

    def _hidden(self, batch: Batch) -> Tensor:
        """Last hidden states, [tokens, width]."""
        if self.packed:
            return packed_hidden(self.model, batch)
        # Padding stands on the right of a causal model: no token that counts sees it, and without
        # an attention mask the fast causal kernel runs.
        tokens, where = batch.padded()
        hidden = self.model.base_model(input_ids=tokens, use_cache=False).last_hidden_state
        return hidden.flatten(0, 1)[where]

    def _score_positions(
        self, head: list[Tile], hidden: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """hidden: [positions, width] before each target; through the head tile by tile."""
        scored = []
        for some, their in zip(hidden.split(self.slice), targets.split(self.slice), strict=True):
            statistics = Statistics(their)
            for tile in head:
                statistics.add(tile.logits(some), tile.first)
            scored.append(statistics.nll_and_entropy())
        return torch.cat([nll for nll, _ in scored]), torch.cat([h for _, h in scored])

    def _score_full(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """For a model whose head can't be called alone: its own logits, one sample at a time."""
        scored = []
        counts = batch.counts.tolist()
        contexts = (batch.contexts - batch.starts[batch.rows]).split(counts)
        samples = batch.tokens.split(batch.lengths)
        targets = batch.targets.split(counts)
        for tokens, where, their in zip(samples, contexts, targets, strict=True):
            logits = self.model(input_ids=tokens[None], use_cache=False).logits
            scored.append(token_nll_and_entropy(logits[0, where], their))
        return torch.cat([nll for nll, _ in scored]), torch.cat([h for _, h in scored])


def _mean_by_row(values: Tensor, batch: Batch) -> Tensor:
    # fp64: a sum over thousands of tokens shouldn't round, and its order shouldn't matter.
    sums = torch.zeros(len(batch.counts), dtype=torch.float64, device=values.device)
    return sums.index_add_(0, batch.rows, values.double()) / batch.counts
