"""The scoring mathematics: mean NLL and mean entropy of response tokens. Knows no Ray.

    NLL(x, y) = −(1/|y|) Σ_t log π(y_t | x, y_<t)
    H(x, y)   = −(1/|y|) Σ_t Σ_v π(v | x, y_<t) log π(v | x, y_<t)

both in nats, over the response tokens y (method's Nouns; paper, §3). The model runs once over the
padded batch; only the positions before a response token go through the output head, in slices, so
that no tensor of batch × length × vocabulary ever exists.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# fp32 logits of one slice: small enough to stay near the cores of a CPU, large enough for a GPU.
SLICE_BYTES = {"cpu": 8 << 20, "cuda": 256 << 20}
CHECK_TOKENS = 16

Head = Callable[[Tensor], Tensor]


def token_nll_and_entropy(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """NLL of the target and entropy at each position, in fp32 whatever the logits' type.

    logits: [positions, vocabulary]; targets: [positions], token ids. Results: [positions], nats.
    H = log Z − Σ_v p_v z_v, with Z the partition function and z the logits.
    """
    logits = logits.float()
    log_z = torch.logsumexp(logits, dim=-1)
    nll = log_z - logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    probabilities = torch.exp(logits - log_z.unsqueeze(-1))
    # A masked-out word has probability 0 and logit −inf; its share is 0, not NaN.
    entropy = log_z - (probabilities * logits.clamp_min(torch.finfo(torch.float32).min)).sum(-1)
    return nll, entropy


class SampleScorer:
    """Scores batches of encoded samples with one model, on the device that holds it."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.device = next(model.parameters()).device
        vocabulary = model.get_output_embeddings().weight.shape[0]
        self.slice = max(1, SLICE_BYTES[self.device.type] // (4 * vocabulary))
        self.head = own_head(model)

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
            nll, entropy = self._score_positions(hidden[rows, columns - 1], targets)
        counts = mask.sum(1)
        return _mean_by_row(nll, rows, counts), _mean_by_row(entropy, rows, counts)

    def _score_positions(self, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """hidden: [positions, width] before each target; in slices through the head."""
        assert self.head is not None
        slices = [
            token_nll_and_entropy(self.head(h), t)
            for h, t in zip(hidden.split(self.slice), targets.split(self.slice), strict=True)
        ]
        return torch.cat([nll for nll, _ in slices]), torch.cat([h for _, h in slices])

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


class _Given(nn.Module):
    """Stands in a model for its body and gives the hidden states that it is given.

    kind: what the body's own output is, for a head may look into other fields of it.
    """

    def __init__(self, kind: type[ModelOutput]) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, *_: object, inputs_embeds: Tensor, **__: object) -> ModelOutput:
        return self.kind(last_hidden_state=inputs_embeds)


def own_head(model: PreTrainedModel) -> Head | None:
    """What the model does to its last hidden states, as a function [n, width] → [n, vocabulary].

    It is the model's own `forward` with the body replaced, so a head that scales or caps its logits
    (Cohere, Granite, Gemma-2) does so here too. It is compared with the model's own logits on a few
    tokens; None where they differ or the model is not built of a body and a head.
    """
    device = next(model.parameters()).device
    vocabulary = int(model.get_input_embeddings().num_embeddings)  # type: ignore[arg-type]
    # Any tokens do; a stride spreads them over the vocabulary.
    tokens = torch.arange(CHECK_TOKENS, device=device)[None] * 7919 % vocabulary
    shell = copy.copy(model)

    def head(hidden: Tensor) -> Tensor:
        return shell(inputs_embeds=hidden[None], use_cache=False).logits[0]

    with torch.inference_mode():
        expected = model(input_ids=tokens, use_cache=False).logits[0].float()
        try:
            body = model.base_model(input_ids=tokens, use_cache=False)
            shell._modules = {**model._modules, model.base_model_prefix: _Given(type(body))}
            found = head(body.last_hidden_state[0]).float()
        except (AttributeError, TypeError):  # no body under that name, or one with other arguments
            return None
    tolerance = 1e-5 if model.dtype == torch.float32 else 2e-2
    same = found.shape == expected.shape and torch.allclose(
        found, expected, rtol=tolerance, atol=tolerance
    )
    return head if same else None
