"""A model's output head, called alone and a tile of the vocabulary at a time.

The head is the model's own `forward` with its body replaced by one that gives the hidden states
that it is given, and its output layer by a slice of it: so a head that scales or caps its logits
(Cohere, Granite, Gemma-2) does so here too, for what it does, it does word by word.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from instructdiff_ray.engine.device import UNLIKE, model_unlike

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CHECK_TOKENS = 16
# Of the norm of a token's logits. A tile is a product of another shape than the whole, whose sums
# the device may add up in another order.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}


@dataclass(frozen=True)
class Tile:
    """Some words of the vocabulary. logits: [n, width] → [n, words]; first: number of the first."""

    first: int
    logits: Callable[[Tensor], Tensor]


class _Given(nn.Module):
    """Stands in a model for its body and gives the hidden states that it is given.

    kind: what the body's own output is, for a head may look into other fields of it.
    """

    def __init__(self, kind: type[ModelOutput]) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, *_: object, inputs_embeds: Tensor, **__: object) -> ModelOutput:
        return self.kind(last_hidden_state=inputs_embeds)


def output_head(model: PreTrainedModel, words: int) -> list[Tile] | None:
    """What the model does to its last hidden states, in tiles of about `words` words each.

    It is compared with the model's own logits on a few tokens; None where they differ or the model
    is not built of a body and a head.
    """
    device = next(model.parameters()).device
    vocabulary = int(model.get_input_embeddings().num_embeddings)  # type: ignore[arg-type]
    # Any tokens do; a stride spreads them over the vocabulary.
    tokens = (torch.arange(CHECK_TOKENS)[None] * 7919 % vocabulary).to(device)
    with torch.inference_mode():
        expected = model(input_ids=tokens, use_cache=False).logits[0].float()
        try:
            body = model.base_model(input_ids=tokens, use_cache=False)
            tiles = _tiles(model, type(body), words)
            hidden = body.last_hidden_state[0].to(head_device(model))
            tiled = torch.cat([tile.logits(hidden) for tile in tiles], -1)
        except UNLIKE as error:
            if model_unlike(error):
                return None
            raise
    return tiles if nearly_equal(tiled, expected, TOLERANCE[model.dtype]) else None


def head_device(model: PreTrainedModel) -> torch.device:
    """Where the hidden states are to be that its output head is given; it differs from the device
    that gives them where layers are on several and the head's weights are the embeddings'."""
    output: Any = model.get_output_embeddings()
    return model.device if output is None else output.weight.device


def without_outer_hook(model: PreTrainedModel) -> None:
    """Takes accelerate's hook off a model whose layers are on several devices, and leaves those of
    its parts.

    It would bring what the model gives back to the first device; and a copy of the model, as the
    output head is called by, would call the original.
    """
    from accelerate.hooks import remove_hook_from_module

    remove_hook_from_module(model)
    vars(model).pop("forward", None)  # the class's own, which the hook had put there


def nearly_equal(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    """Whether every row differs by no more than this share of its norm. Both: [rows, width]."""
    if found.shape != expected.shape:
        return False
    differ = (found.float() - expected).norm(dim=-1)
    return bool((differ <= tolerance * expected.norm(dim=-1)).all())


def _tiles(model: PreTrainedModel, body: type[ModelOutput], words: int) -> list[Tile]:
    modules: dict[str, nn.Module | None] = {
        **model._modules,
        model.base_model_prefix: _Given(body),
    }
    output = model.get_output_embeddings()
    names = [name for name, module in model._modules.items() if module is output]
    if type(output) is not nn.Linear or not names:
        return [Tile(0, _shell(model, modules))]
    total = output.weight.shape[0]
    return [
        Tile(first, _shell(model, {**modules, names[0]: _Rows(output, first, first + words)}))
        for first in range(0, total, words)
    ]


def _shell(
    model: PreTrainedModel, modules: dict[str, nn.Module | None]
) -> Callable[[Tensor], Tensor]:
    shell = copy.copy(model)
    shell._modules = modules

    def logits(hidden: Tensor) -> Tensor:
        return shell(inputs_embeds=hidden[None], use_cache=False).logits[0]

    return logits


class _Rows(nn.Module):
    """Some rows of a linear layer: a view, not a copy.

    On CUDA the products of bf16 are given in fp32, as they are added up: a logit of 20 rounded to
    bf16 is off by up to 1/16.
    """

    def __init__(self, layer: nn.Linear, start: int, end: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(layer.weight[start:end], requires_grad=False)
        self.bias = None
        if layer.bias is not None:
            self.bias = nn.Parameter(layer.bias[start:end], requires_grad=False)

    def forward(self, hidden: Tensor) -> Tensor:
        if not hidden.is_cuda or hidden.dtype != torch.bfloat16:
            return nn.functional.linear(hidden, self.weight, self.bias)
        products = torch.mm(hidden.flatten(0, -2), self.weight.T, out_dtype=torch.float32)
        if self.bias is not None:
            products += self.bias
        return products.unflatten(0, hidden.shape[:-1])
