"""What a training holds in the memory of one device, known from the model's configuration alone.

Weights, gradients and the optimizer's states are counted. What a forward and backward pass holds
besides is measured, without numbers: the pass is run on fake tensors, which have shapes and types
only.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, finalize

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from instructdiff_ray.config.training import CalibrateConfig
from instructdiff_ray.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# Bytes of each parameter that is trained: AdamW keeps two moments, Adafactor sums of rows and
# columns, which are next to nothing.
FP32 = 4
STATES = {"adamw": 2 * FP32, "adafactor": 0}
GIB = 2**30
# Of a device's memory; the rest is CUDA's own, its libraries', and what lies between tensors.
USABLE = 0.9


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes on one device.

    activations: all that a pass holds besides, at its peak, the logits and their loss among it.
    accumulates: whether gradients of an earlier pass are there in the next.
    """

    weights: float
    gradients: float
    optimizer: float
    activations: float
    accumulates: bool

    @property
    def peak(self) -> float:
        """Where each pass is a step of its own, activations go as gradients come."""
        if self.accumulates:
            return self.weights + self.optimizer + self.gradients + self.activations
        return self.weights + self.optimizer + max(self.gradients, self.activations)


@dataclass(frozen=True)
class Pass:
    """A forward and backward pass on one device.

    samples, length: each padded to so many tokens; shards: workers that the model, its gradients
    and the optimizer are sharded over; accumulates: whether a step has several passes.
    """

    samples: int
    length: int
    shards: int = 1
    accumulates: bool = True


class MemoryModel:
    """What trainings of one model hold. precision: fp32 | bf16, of a pass."""

    def __init__(self, config: PreTrainedConfig, precision: str) -> None:
        self.config, self.precision = config, precision
        self.parameters = parameters(config)
        self.measured: dict[tuple[Any, ...], float] = {}

    def training(self, hyper: CalibrateConfig, one_pass: Pass) -> TrainingMemory:
        total, shards = self.parameters, one_pass.shards
        activations = self._measure(one_pass, hyper)
        if shards > 1:
            # Two layers at a time are whole, in the precision of the pass, and what is no layer:
            # a model of two layers.
            width = 2 if self.precision == "bf16" else FP32
            activations += width * parameters(with_layers(self.config, 2))
        # Of an adapter they are next to nothing.
        trained = 0 if hyper.lora_rank else total
        return TrainingMemory(
            FP32 * total / shards,
            FP32 * trained / shards,
            STATES[hyper.optimizer] * trained / shards,
            activations,
            one_pass.accumulates,
        )

    def _measure(self, one_pass: Pass, hyper: CalibrateConfig) -> float:
        frozen, sharded = hyper.lora_rank is not None, one_pass.shards > 1
        key = (one_pass.samples, one_pass.length, sharded, hyper.gradient_checkpointing, frozen)
        if key not in self.measured:
            model = model_without_numbers(
                self.config,
                # Shards are gathered in the precision of the pass; else it is cast to as it goes.
                torch.bfloat16 if sharded and self.precision == "bf16" else torch.float32,
                hyper.gradient_checkpointing,
                frozen,
            )
            cast = self.precision == "bf16" and not sharded
            self.measured[key] = activations(*model, one_pass, cast)
        return self.measured[key]


def require_memory(
    config: PreTrainedConfig, hyper: CalibrateConfig, precision: str, one_pass: Pass, device: float
) -> None:
    """Raises UserError where a device of so many bytes will not hold the training; its line says
    what would fit, what changes least first."""
    model, room = MemoryModel(config, precision), USABLE * device
    needed = model.training(hyper, one_pass).peak
    if needed <= room:
        return
    accumulates = one_pass.accumulates or one_pass.samples > 1
    fewer = replace(one_pass, samples=1, accumulates=accumulates)
    tokens = f"cluster.train.tokens_per_device={fewer.length}"
    saving = replace(hyper, gradient_checkpointing=True)
    least = f"calibrate.gradient_checkpointing=true {tokens}"
    options = {
        tokens: (hyper, fewer),
        "calibrate.gradient_checkpointing=true": (saving, one_pass),
        least: (saving, fewer),
    }
    if hyper.optimizer == "adamw" and hyper.lora_rank is None:
        sharded = f"cluster.train.workers=8 cluster.train.fsdp=true {least}"
        options[sharded] = (saving, replace(fewer, shards=8))
        options[f"calibrate.optimizer=adafactor {least}"] = (
            replace(saving, optimizer="adafactor"),
            fewer,
        )
    options[f"calibrate.lora_rank=16 {least}"] = (replace(saving, lora_rank=16), fewer)
    fitting = [
        overrides for overrides, changed in options.items() if model.training(*changed).peak <= room
    ]
    raise UserError(
        f"this training needs about {needed / GIB:.0f} GiB and the device has"
        f" {device / GIB:.0f}; what would fit: {'; or '.join(fitting[:3]) or 'a larger device'}"
    )


def with_layers(config: PreTrainedConfig, count: int) -> PreTrainedConfig:
    """The configuration with so many layers."""
    changed = copy.deepcopy(config)
    text = changed.get_text_config()
    text.num_hidden_layers = count
    if types := getattr(text, "layer_types", None):
        text.layer_types = types[:count]
    return changed


def parameters(config: PreTrainedConfig) -> int:
    """How many a model of this configuration has."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return int(AutoModelForCausalLM.from_config(config).num_parameters())


def model_without_numbers(
    config: PreTrainedConfig, dtype: torch.dtype, checkpointing: bool, frozen: bool
) -> tuple[FakeTensorMode, Any]:
    """A model of fake tensors, and the mode that they are of. frozen: as under an adapter."""
    from transformers import AutoModelForCausalLM

    mode = FakeTensorMode()
    with mode:
        model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        if frozen:
            model.requires_grad_(False)
            model.enable_input_require_grads()
    return mode, model


def activations(mode: FakeTensorMode, model: Any, one_pass: Pass, cast: bool) -> float:
    """Bytes that a pass holds at its peak besides weights and gradients: those of a gradient count
    while it is made. cast: of products, to bf16."""
    for weight in model.parameters():
        if weight.requires_grad:
            weight.register_post_accumulate_grad_hook(_drop_gradient)
    with mode, PeakMemory(besides=[*model.parameters(), *model.buffers()]) as memory:
        ids = torch.zeros(one_pass.samples, one_pass.length, dtype=torch.long)
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
        with torch.autocast("cpu", torch.bfloat16, cast):
            loss = model(**batch, use_cache=False).loss
        loss.backward()
    return float(memory.peak)


def _drop_gradient(weight: torch.Tensor) -> None:
    weight.grad = None


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
