"""The scoring mathematics: mean NLL and mean entropy of response tokens. Knows no Ray.

    NLL(x, y) = −(1/|y|) Σ_t log π(y_t | x, y_<t)
    H(x, y)   = −(1/|y|) Σ_t Σ_v π(v | x, y_<t) log π(v | x, y_<t)

both in nats, over the response tokens y (paper, §3). The model's body runs once
over the batch; only the positions before a response token go through the output head, a tile of
positions and words at a time, so that no tensor of tokens × vocabulary ever exists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from instructdiff_ray.engine.batch import Batch
from instructdiff_ray.engine.device import missing_to_compile
from instructdiff_ray.engine.lm_head import Tile, head_device, output_head
from instructdiff_ray.engine.packing import pack, packed_hidden
from instructdiff_ray.engine.throughput import operations_per_token
from instructdiff_ray.models.rating import token_rating

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Positions that go through the head together: enough that reading a tile of the head's weights is
# no cost beside multiplying with them.
SLICE_POSITIONS = {"cpu": 1024, "cuda": 4096}
# Logits of one tile: near the cores of a CPU, and on a GPU no more than it needs to be busy.
TILE_BYTES = {"cpu": 4 << 20, "cuda": 128 << 20}
NO_ADAPTER = ""
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
    columns: Tensor,
    largest: Tensor,
    total: Tensor,
    weighted: Tensor,
    target_logits: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The sums m, s, u and the targets' logits with one tile more. columns: of the targets in the
    tile; outside of it where another tile has them."""
    logits = logits.float()
    last = logits.shape[-1] - 1
    gathered = logits.gather(-1, columns.clamp(0, last).unsqueeze(-1)).squeeze(-1)
    target_logits = torch.where((columns >= 0) & (columns <= last), gathered, target_logits)
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
    """`add_up` compiled: two passes over a tile of logits instead of ten.
    As it is where nothing can be compiled."""
    if missing_to_compile():
        return add_up
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

    rating_tokens: None scores NLL and entropy; else ratings by these tokens (rating.py).
    adapter: name of the model's LoRA adapter that is on, NO_ADAPTER: none of them; None: it has
        none.
    packed: whether the model takes samples without padding; operations: of its matrix products, as
    `operations_per_token` gives them.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        rating_tokens: list[int] | None = None,
        adapter: str | None = None,
    ) -> None:
        self.model = model
        self.rating_tokens = rating_tokens
        self.adapter = adapter
        weights = next(model.parameters())
        self.device = weights.device
        self.slice = SLICE_POSITIONS[self.device.type]
        row = TILE_BYTES[self.device.type] // self.slice
        logit = torch.float32 if weights.is_cuda else model.dtype
        self.head = output_head(model, row // logit.itemsize)
        self.head_device = head_device(model)
        self.packed = self.head is not None and pack(model)
        self.operations = operations_per_token(model)

    def forward_pass(self) -> str:
        """For people: how this model scores samples on this device."""
        on_gpu, missing = self.device.type == "cuda", missing_to_compile()
        if self.head is None:
            return "one sample at a time, whole logits"
        if self.packed:
            samples = f"packed samples, attention {'varlen flash' if on_gpu else 'sdpa'}"
        else:
            attention = self.model.config.get_text_config()._attn_implementation
            samples = f"padded samples, attention {attention}"
        sums = "compiled" if on_gpu and not missing else "eager"
        reason = f" ({missing})" if on_gpu and missing else ""
        return f"{samples}, head in {len(self.head)} tiles, sums {sums}{reason}"

    @torch.inference_mode()
    def score(self, batch: Batch) -> Tensor:
        """Mean NLL and mean entropy of each sample's response tokens, or its rating.

        fp64 [2, samples], nats, or [1, samples]; on the device, where it may still be under way.
        """
        return _mean_by_row(self.score_tokens(batch), batch)

    @torch.inference_mode()
    def score_tokens(self, batch: Batch) -> Tensor:
        """NLL and entropy of each scored token, or its rating, in the order of `batch.targets`.

        fp32 [2, scored], nats, or [1, scored].
        """
        if self.adapter == NO_ADAPTER:
            self.model.disable_adapters()
        elif self.adapter is not None:
            self.model.enable_adapters()
            self.model.set_adapter(self.adapter)
        if self.head is None:
            scored = [self._measure(*logits) for logits in self._full_logits(batch)]
        else:
            hidden, targets = self._before_targets(batch)
            scored = [
                self._measure_tiles(self.head, hidden_slice, target_slice)
                for hidden_slice, target_slice in zip(
                    hidden.split(self.slice), targets.split(self.slice), strict=True
                )
            ]
        return torch.cat(scored, dim=1).to(self.device)

    def _before_targets(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Hidden states before the scored tokens, [scored, width], and these, [scored]; where the
        output head is."""
        hidden, head = self._hidden(batch), self.head_device
        return hidden[batch.contexts.to(hidden.device)].to(head), batch.targets.to(head)

    def _hidden(self, batch: Batch) -> Tensor:
        """Last hidden states, [tokens, width]."""
        if self.packed:
            return packed_hidden(self.model, batch)
        # Padding stands on the right of a causal model: no token that counts sees it, and without
        # an attention mask the fast causal kernel runs.
        tokens, where = batch.padded()
        hidden = self.model.base_model(input_ids=tokens, use_cache=False).last_hidden_state
        return hidden.flatten(0, 1)[where.to(hidden.device)]

    def _measure_tiles(self, head: list[Tile], hidden: Tensor, targets: Tensor) -> Tensor:
        """[measures, positions]. hidden: [positions, width] before each target."""
        if self.rating_tokens is not None:  # at one position a sample: its whole logits are few
            logits = torch.cat([tile.logits(hidden) for tile in head], -1)
            return self._measure(logits, targets)
        statistics = Statistics(targets)
        for tile in head:
            statistics.add(tile.logits(hidden), tile.first)
        return torch.stack(statistics.nll_and_entropy())

    def _measure(self, logits: Tensor, targets: Tensor) -> Tensor:
        """[measures, positions]. logits: [positions, vocabulary]."""
        if self.rating_tokens is not None:
            return token_rating(logits[:, self.rating_tokens])[None]
        return torch.stack(token_nll_and_entropy(logits, targets))

    def _full_logits(self, batch: Batch) -> Iterator[tuple[Tensor, Tensor]]:
        """For a model whose head can't be called alone: its own logits, one sample at a time."""
        counts = batch.counts.tolist()
        contexts = (batch.contexts - batch.starts[batch.rows]).split(counts)
        samples = batch.tokens.split(batch.lengths)
        targets = batch.targets.split(counts)
        for tokens, positions, sample_targets in zip(samples, contexts, targets, strict=True):
            logits = self.model(input_ids=tokens[None], use_cache=False).logits
            yield logits[0, positions.to(logits.device)].to(self.device), sample_targets


def _mean_by_row(values: Tensor, batch: Batch) -> Tensor:
    # fp64: a sum over thousands of tokens shouldn't round, and its order shouldn't matter.
    shape = (len(values), len(batch.counts))
    sums = torch.zeros(shape, dtype=torch.float64, device=values.device)
    return sums.index_add_(1, batch.rows, values.double()) / batch.counts
