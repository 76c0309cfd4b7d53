"""What goes through a model in one pass of a training, and the loss of it.

Samples lie one behind the other, without padding, where the model's attention can keep them apart.
Only the positions before a response token go through the output head, where the model can be told
so, and the loss of their logits is computed a tile at a time: none of it changes the loss, and each
is tried on a few tokens before it is used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from instructdiff_ray.engine.device import UNLIKE, model_unlike
from instructdiff_ray.engine.lm_head import nearly_equal
from instructdiff_ray.engine.packing import LAYER_TYPES, PACKED, TOLERANCE, check_samples
from instructdiff_ray.training.training_set import IGNORED

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

# Of fp32 logits whose loss is computed at once; several such are alive at the same time.
TILE_BYTES = 64 << 20

Item = dict[str, list[int]]  # `input_ids` and `labels` of a sample
Collator = Callable[[list[Item]], dict[str, Any]]


def collate_packed(items: list[Item]) -> dict[str, Any]:
    """One row of all samples, [1, tokens], and where each begins; see `packing.attend`."""
    lengths = torch.tensor([len(item["input_ids"]) for item in items])
    starts = nn.functional.pad(lengths.cumsum(0), (1, 0))
    tokens = torch.arange(int(starts[-1]))
    return _with_responses(
        {
            "input_ids": torch.tensor([[t for item in items for t in item["input_ids"]]]),
            "labels": torch.tensor([[t for item in items for t in item["labels"]]]),
            "position_ids": (tokens - starts[:-1].repeat_interleave(lengths))[None],
            "cu_seq_lens_q": starts.int(),
            "max_length_q": int(lengths.max()),
        }
    )


def collate_responses(items: list[Item]) -> dict[str, Any]:
    """A padded row for each sample; logits are wanted before response tokens only."""
    return _with_responses(collate_padded(items))


def collate_padded(items: list[Item]) -> dict[str, Any]:
    """Right-padded `input_ids`, `attention_mask` and `labels`, each [samples, longest]."""
    longest = max(len(item["input_ids"]) for item in items)

    def padded(values: list[list[int]], fill: int) -> Tensor:
        return torch.tensor([row + [fill] * (longest - len(row)) for row in values])

    ids = [item["input_ids"] for item in items]
    return {
        "input_ids": padded(ids, 0),
        "attention_mask": padded([[1] * len(row) for row in ids], 0),
        "labels": padded([item["labels"] for item in items], IGNORED),
    }


def _with_responses(batch: dict[str, Any]) -> dict[str, Any]:
    """Adds `logits_to_keep`, [rows, tokens]: whether the next token has a loss. The first of a
    sample never has one, so what is next to the last of a sample doesn't matter."""
    next_token = nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=IGNORED)
    return {**batch, "logits_to_keep": next_token != IGNORED}


def response_loss(
    logits: Tensor, labels: Tensor, vocab_size: int, num_items_in_batch: Tensor | int, **_: Any
) -> Tensor:
    """What a model calls for its loss: Σ NLL of the response tokens / `num_items_in_batch`.

    logits: [..., vocabulary], in the order of the labels that are not IGNORED.
    """
    return summed_nll(logits.flatten(0, -2), labels[labels != IGNORED]) / num_items_in_batch


def summed_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """Σ −log p(target), in fp32 and nats. logits: [tokens, vocabulary]; targets: [tokens].

    Of a tile's fp32 probabilities nothing is kept for the backward pass: they are computed again.
    """
    rows = max(1, TILE_BYTES // (4 * logits.shape[-1]))
    total = logits.new_zeros((), dtype=torch.float32)
    for tile, words in zip(logits.split(rows), targets.split(rows), strict=True):
        nll: Any = checkpoint(_nll, tile, words, use_reentrant=False, preserve_rng_state=False)
        total = total + nll
    return total


def _nll(logits: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits.float(), targets, reduction="sum")


def choose_collator(
    model: PreTrainedModel, autocast: torch.dtype | None, packs: bool = True
) -> Collator:
    """The first of the ways to lay out a batch, least memory first, that gives this model's logits
    and loss on a few samples, and a gradient; the model is made ready for it.

    model: in training mode, on the device of the training; autocast: type of the matrix products,
    None: the model's own; packs: whether packing is tried, see `attends_packed`.
    """
    if getattr(model, "accepts_loss_kwargs", True) is False:  # Trainer tells it no number of items
        return collate_padded
    attention = model.config.get_text_config()._attn_implementation
    with torch.autocast(model.device.type, autocast, enabled=autocast is not None):
        for collator in (collate_packed, collate_responses):
            if collator is collate_packed and not packs:
                continue
            # A model that drops something while it is trained may do so in its attention, which
            # can't be packed: it gives other logits every time, and so is padded.
            model.train(collator is collate_packed)
            try:
                same = _same_loss(model, collator, TOLERANCE[autocast or model.dtype])
            except UNLIKE as error:
                if not model_unlike(error):
                    raise
                same = False
            model.train()
            if same:
                return collator
            _reset(model, attention)
    return collate_padded


def use(model: PreTrainedModel, collator: Collator) -> None:
    """Make the model take what the collator gives."""
    if collator is collate_packed:
        model.set_attn_implementation(PACKED)
    if collator is not collate_padded:
        model.loss_function = response_loss


def _reset(model: PreTrainedModel, attention: str) -> None:
    model.set_attn_implementation(attention)
    if hasattr(model, "_loss_function"):
        del model._loss_function


def attends_packed(config: PreTrainedConfig) -> bool:
    """Whether `packing.attend` knows all kinds of attention that a model has by its
    configuration."""
    types = getattr(config.get_text_config(), "layer_types", None)
    return set(types or ()) <= LAYER_TYPES


def _same_loss(model: PreTrainedModel, collator: Collator, tolerance: float) -> bool:
    """Whether the collator's batch gives the logits and the loss that a padded one gives; the model
    is made ready for it on the way."""
    items = _check_items(int(model.get_input_embeddings().num_embeddings))  # type: ignore[arg-type]
    padded = send_to_device(collate_responses(items), model.device)
    keep, labels = padded.pop("logits_to_keep"), padded.pop("labels")
    targets = labels[labels != IGNORED]
    with torch.no_grad():
        expected = model(**padded, use_cache=False).logits[keep].float()
        loss = summed_nll(expected, targets) / len(targets)
    use(model, collator)
    batch = send_to_device(collator(items), model.device)
    output = model(**batch, num_items_in_batch=len(targets), use_cache=False)
    output.loss.backward()
    model.zero_grad()
    logits = output.logits.detach().flatten(0, -2)
    return nearly_equal(logits, expected, tolerance) and nearly_equal(
        output.loss.detach().view(1, 1), loss.view(1, 1), tolerance
    )


def _check_items(words: int) -> list[Item]:
    """The samples that packing is tried on, the second half of each its response."""
    items = []
    for sample in check_samples(words):
        ids, prompt = sample.tolist(), len(sample) // 2 + 1
        items.append({"input_ids": ids, "labels": [IGNORED] * prompt + ids[prompt:]})
    return items
