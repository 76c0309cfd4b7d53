"""The scoring mathematics: mean NLL and mean entropy of response tokens. Knows no Ray.

    NLL(x, y) = −(1/|y|) Σ_t log π(y_t | x, y_<t)
    H(x, y)   = −(1/|y|) Σ_t Σ_v π(v | x, y_<t) log π(v | x, y_<t)

both in nats, over the response tokens y (method's Nouns; paper, §3). The model runs once over the
padded batch; only the positions before a response token go through the output head, a tile of
positions and words at a time, so that no tensor of batch × length × vocabulary ever exists.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from instructdiff_ray.head import Tile, own_head

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Positions that go through the head together: enough that reading a tile of the head's weights is
# no cost beside multiplying with them.
SLICE_POSITIONS = {"cpu": 512, "cuda": 4096}
# fp32 logits of one tile: near the cores of a CPU, and on a GPU no more than it needs to be busy.
TILE_BYTES = {"cpu": 4 << 20, "cuda": 256 << 20}
# A masked-out word has logit −inf; this has the same probability, 0, and a finite product with it.
MASKED = -1e30


class Statistics:
    """Sums over the vocabulary at some positions, a tile at a time, in fp32.

    With m the largest logit so far and d = z − m, keeps s = Σ exp d and u = Σ d exp d, and the
    targets' logits; so log Z = m + log s, and H = log Z − Σ p z = log s − u / s.
    """

    def __init__(self, targets: Tensor) -> None:
        self.targets = targets
        self.largest = torch.full_like(targets, MASKED, dtype=torch.float32)
        self.sum = torch.zeros_like(self.largest)
        self.weighted = torch.zeros_like(self.largest)
        self.target_logits = torch.zeros_like(self.largest)

    def add(self, logits: Tensor, first: int = 0) -> None:
        """logits: [positions, words] of the words from number `first` on; is overwritten."""
        logits = logits.float()
        words = logits.shape[-1]
        inside = (self.targets >= first) & (self.targets < first + words)
        places = (self.targets - first).clamp(0, words - 1)
        found = logits.gather(-1, places.unsqueeze(-1)).squeeze(-1)
        self.target_logits = torch.where(inside, found, self.target_logits)
        logits = logits.clamp_min_(MASKED)  # behind the targets: a masked one has no finite NLL
        largest = torch.maximum(self.largest, logits.amax(-1))
        risen = self.largest - largest
        shifted = logits.sub_(largest.unsqueeze(-1))
        powers = shifted.exp()
        self.weighted = risen.exp() * (self.weighted + self.sum * risen)
        self.weighted += torch.linalg.vecdot(powers, shifted)
        self.sum = self.sum * risen.exp() + powers.sum(-1)
        self.largest = largest

    def nll_and_entropy(self) -> tuple[Tensor, Tensor]:
        """At each position, in nats."""
        log_sum = self.sum.log()
        return self.largest + log_sum - self.target_logits, log_sum - self.weighted / self.sum


def token_nll_and_entropy(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """NLL of the target and entropy at each position, in fp32 whatever the logits' type.

    logits: [positions, vocabulary]; targets: [positions], token ids. Results: [positions], nats.
    """
    statistics = Statistics(targets)
    statistics.add(logits.clone())
    return statistics.nll_and_entropy()


class SampleScorer:
    """Scores batches of encoded samples with one model, on the device that holds it."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.device = next(model.parameters()).device
        self.slice = SLICE_POSITIONS[self.device.type]
        self.head = own_head(model, TILE_BYTES[self.device.type] // (4 * self.slice))

    @torch.inference_mode()
    def score(
        self, input_ids: Sequence[Sequence[int]], response: Sequence[Sequence[bool]]
    ) -> tuple[Tensor, Tensor]:
        """Mean NLL and mean entropy of each sample's response tokens.

        input_ids: token ids of each sample; response: whether each of them is scored (never the
        first). Both results: fp64 [samples] on the CPU, nats.
        """
        tokens, mask = pad(input_ids, response)
        tokens, mask = tokens.to(self.device), mask.to(self.device)
        rows, columns = mask.nonzero(as_tuple=True)
        targets = tokens[rows, columns]
        if self.head is None:
            nll, entropy = self._score_full(tokens, mask)
        else:
            # Padding stands on the right of a causal model: no token that counts sees it, and
            # without an attention mask the fast causal kernel runs.
            hidden = self.model.base_model(input_ids=tokens, use_cache=False).last_hidden_state
            nll, entropy = self._score_positions(self.head, hidden[rows, columns - 1], targets)
        counts = mask.sum(1)
        return _mean_by_row(nll, rows, counts), _mean_by_row(entropy, rows, counts)

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

    def _score_full(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """For a model whose head can't be called alone: its own logits, one sample at a time."""
        scored = []
        for row, selected in zip(tokens, mask, strict=True):
            columns = selected.nonzero().squeeze(-1)
            logits = self.model(input_ids=row[None, : int(columns[-1]) + 1], use_cache=False).logits
            scored.append(token_nll_and_entropy(logits[0, columns - 1], row[columns]))
        return torch.cat([nll for nll, _ in scored]), torch.cat([h for _, h in scored])


def pad(
    input_ids: Sequence[Sequence[int]], response: Sequence[Sequence[bool]]
) -> tuple[Tensor, Tensor]:
    """Right-padded token ids (int64) and response mask (bool), both [samples, longest]."""
    longest = max(map(len, input_ids))
    tokens = torch.zeros(len(input_ids), longest, dtype=torch.long)
    mask = torch.zeros(len(input_ids), longest, dtype=torch.bool)
    for row, (ids, scored) in enumerate(zip(input_ids, response, strict=True)):
        tokens[row, : len(ids)] = torch.as_tensor(ids, dtype=torch.long)
        mask[row, : len(scored)] = torch.as_tensor(scored, dtype=torch.bool)
    return tokens, mask


def _mean_by_row(values: Tensor, rows: Tensor, counts: Tensor) -> Tensor:
    # fp64: a sum over thousands of tokens shouldn't round, and its order shouldn't matter.
    sums = torch.zeros(len(counts), dtype=torch.float64, device=values.device)
    return (sums.index_add_(0, rows, values.double()) / counts).cpu()
