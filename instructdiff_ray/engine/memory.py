"""What a model holds in the memory of a device, known from its configuration alone.

Weights are counted. What a pass holds besides is measured, without numbers: it is run on fake
tensors, which have shapes and types only.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self
from weakref import WeakKeyDictionary, finalize

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from instructdiff_ray.engine.metrics import TILE_BYTES
from instructdiff_ray.engine.packing import PACKED
from instructdiff_ray.models.model import DTYPES, parameters, with_layers

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

GIB = 2**30
# Of a device's memory; the rest is CUDA's own, its libraries', and what lies between tensors.
USABLE = 0.9
# Tiles of logits, and what is computed of them, that are alive at the same time.
HEAD_TILES = 4


@dataclass(frozen=True)
class ScoringMemory:
    """Bytes that scoring with one model holds. precision: fp32 | bf16.

    weights: of the model; piece: of its largest part that can't be split over devices; forward: of
    a pass besides.
    """

    weights: float
    piece: float
    forward: float

    @classmethod
    def of(cls, config: PreTrainedConfig, precision: str, tokens: int, device_type: str) -> Self:
        """tokens: of a pass."""
        two = with_layers(config, 2)
        of_two = parameters(two)
        layer = of_two - parameters(with_layers(config, 1))
        tables = 1 if config.get_text_config().tie_word_embeddings else 2
        table = (of_two - 2 * layer) / tables
        width = dtype_of(precision).itemsize
        return cls(
            width * parameters(config),
            width * max(layer, table),
            max(
                body_bytes(two, precision, tokens),
                # The hidden states of all tokens, and of those before a response token.
                2 * tokens * two.get_text_config().hidden_size * width
                + HEAD_TILES * TILE_BYTES[device_type],
            ),
        )

    def on_each(self, models: int, devices: int) -> float:
        """Bytes on the fullest of the devices over which the layers of so many such models are
        split."""
        split = self.weights if devices == 1 else self.weights / devices + self.piece
        return models * split + self.forward


def body_bytes(config: PreTrainedConfig, precision: str, tokens: int) -> float:
    """Bytes that the body of a model holds at its peak, besides weights, in a pass of so many
    tokens. It is the same for any number of layers above one."""
    model = model_without_numbers(config, dtype_of(precision))
    model.set_attn_implementation(PACKED)
    mode = made_to_run(model)
    besides = [*model.parameters(), *model.buffers()]
    with mode, torch.no_grad(), PeakMemory(besides) as memory:
        ids = torch.zeros(1, tokens, dtype=torch.long)
        model.base_model(input_ids=ids, position_ids=ids, use_cache=False)
    return float(memory.peak)


def dtype_of(precision: str) -> torch.dtype:
    """precision: fp32 | bf16."""
    dtype: torch.dtype = getattr(torch, DTYPES[precision])
    return dtype


def model_without_numbers(config: PreTrainedConfig, dtype: torch.dtype) -> Any:
    """A model of tensors that have shapes and types only; it can be changed, and not run."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(_without_window(config), dtype=dtype)


def made_to_run(model: Any) -> FakeTensorMode:
    """Makes a model without numbers one that runs in this mode, as if it were on a processor."""
    mode = FakeTensorMode()
    shared: dict[int, torch.nn.Parameter] = {}  # tied weights stay tied
    with mode:
        for module in model.modules():
            for name, weight in module._parameters.items():
                if weight is not None:
                    empty = torch.empty(weight.shape, dtype=weight.dtype)
                    parameter = torch.nn.Parameter(empty, weight.requires_grad)
                    module._parameters[name] = shared.setdefault(id(weight), parameter)
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
    return mode


def _without_window(config: PreTrainedConfig) -> PreTrainedConfig:
    """A configuration whose windows end nowhere: a window is a number to the attention of a GPU,
    and to that of these tensors a mask."""
    changed = copy.deepcopy(config)
    text = changed.get_text_config()
    if getattr(text, "sliding_window", None):
        text.sliding_window = 1 << 30
    return changed


class PeakMemory(TorchDispatchMode):
    """Bytes that are alive at most of all tensors that are made while it is on; `besides` are there
    before, and views of them cost nothing."""

    def __init__(self, besides: Iterable[torch.Tensor] = ()) -> None:
        super().__init__()
        self.alive = self.peak = 0
        self.storages: WeakKeyDictionary[Any, None] = WeakKeyDictionary()
        for tensor in besides:
            self.storages[tensor.untyped_storage()] = None

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage in self.storages:  # a view, or written in place
            return
        self.storages[storage] = None
        self.alive += storage.nbytes()
        self.peak = max(self.peak, self.alive)
        finalize(storage, self._remove, storage.nbytes())

    def _remove(self, count: int) -> None:
        self.alive -= count
