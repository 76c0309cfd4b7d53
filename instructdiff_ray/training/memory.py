"""What a training holds in the memory of one device, known from the model's configuration alone.

Weights, gradients and the optimizer's states are counted. What a forward and backward pass holds
besides is measured, without numbers: the pass is run on fake tensors, which have shapes and types
only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from instructdiff_ray.config.training import CalibrateConfig
from instructdiff_ray.engine.memory import (
    GIB,
    USABLE,
    PeakMemory,
    dtype_of,
    made_to_run,
    model_without_numbers,
)
from instructdiff_ray.models.model import parameters, with_layers
from instructdiff_ray.training.adapter import with_adapter
from instructdiff_ray.training.batches import (
    Collator,
    collate_packed,
    collate_padded,
    summed_nll,
    use,
)

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# Bytes of each parameter that is trained: AdamW keeps two moments, Adafactor sums of rows and
# columns, which are next to nothing.
FP32 = 4
STATES = {"adamw": 2 * FP32, "adafactor": 0}


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

    samples, length: each of so many tokens; responses: of these, the tokens with a loss, of all
    samples together, None: all; collator: which lays them out; shards: workers that the model, its
    gradients and the optimizer are sharded over; accumulates: whether a step has several passes.
    """

    samples: int
    length: int
    responses: int | None = None
    collator: Collator = collate_packed
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
            activations = self._with_whole_layers(activations, hyper)
        # Of an adapter they are next to nothing.
        trained = 0 if hyper.lora_rank else total
        return TrainingMemory(
            FP32 * total / shards,
            FP32 * trained / shards,
            STATES[hyper.optimizer] * trained / shards,
            activations,
            one_pass.accumulates,
        )

    def _with_whole_layers(self, activations: float, hyper: CalibrateConfig) -> float:
        """What a sharded pass holds: two layers at a time are whole, in the precision of the pass,
        and what is no layer. Gradients of a layer, and at last of what is none, are whole until
        they are added up, in fp32."""
        two = parameters(with_layers(self.config, 2))
        layer = two - parameters(with_layers(self.config, 1))
        width = dtype_of(self.precision).itemsize
        gradient = 0 if hyper.lora_rank else width + FP32
        whole = width * two
        return whole + max(activations + gradient * layer, gradient * (two - 2 * layer))

    def _measure(self, one_pass: Pass, hyper: CalibrateConfig) -> float:
        sharded = one_pass.shards > 1
        key = (
            *(one_pass.samples, one_pass.length, one_pass.responses, one_pass.collator),
            *(sharded, hyper.gradient_checkpointing, hyper.lora_rank),
        )
        if key not in self.measured:
            # Shards are gathered in the precision of the pass; else it is cast to as it goes.
            dtype = dtype_of(self.precision) if sharded else torch.float32
            model = model_without_numbers(self.config, dtype).train()
            use(model, one_pass.collator)
            if hyper.gradient_checkpointing:
                model.gradient_checkpointing_enable()
            if hyper.lora_rank:
                model = with_adapter(model, hyper)
            if sharded:  # adapters too, which are in fp32 else
                model = model.to(dtype)
            cast = self.precision == "bf16" and not sharded
            self.measured[key] = activations(made_to_run(model), model, one_pass, cast)
        return self.measured[key]


def lacking_memory(
    config: PreTrainedConfig, hyper: CalibrateConfig, precision: str, one_pass: Pass, device: float
) -> str | None:
    """The line that says so where a device of so many bytes will not hold the training, and what
    would fit, what changes least first."""
    model, room = MemoryModel(config, precision), USABLE * device
    needed = model.training(hyper, one_pass).peak
    if needed <= room:
        return None
    accumulates = one_pass.accumulates or one_pass.samples > 1
    total = one_pass.responses or one_pass.samples * one_pass.length
    responses = math.ceil(total / one_pass.samples)
    fewer = replace(one_pass, samples=1, responses=responses, accumulates=accumulates)
    tokens = f"cluster.train.tokens_per_device={fewer.length}"
    saving = replace(hyper, gradient_checkpointing=True)
    least = f"calibrate.gradient_checkpointing=true {tokens}"
    options = {
        tokens: (hyper, fewer),
        "calibrate.gradient_checkpointing=true": (saving, one_pass),
        least: (saving, fewer),
    }
    sharded = f"cluster.train.workers=8 cluster.train.fsdp=true {least}"
    eight = replace(fewer, shards=8)
    adapted = replace(saving, lora_rank=16)
    if hyper.optimizer == "adamw":
        options[sharded] = (saving, eight)
    if hyper.optimizer == "adamw" and hyper.lora_rank is None:
        factored = replace(saving, optimizer="adafactor")
        options[f"calibrate.optimizer=adafactor {least}"] = (factored, fewer)
    options[f"calibrate.lora_rank=16 {least}"] = (adapted, fewer)
    if hyper.optimizer == "adamw":
        options[f"calibrate.lora_rank=16 {sharded}"] = (adapted, eight)
    fitting = [
        overrides for overrides, changed in options.items() if model.training(*changed).peak <= room
    ]
    return (
        f"this training needs about {needed / GIB:.0f} GiB and the device has"
        f" {device / GIB:.0f}; what would fit: {'; or '.join(fitting[:3]) or 'a larger device'}"
    )


def activations(mode: FakeTensorMode, model: Any, one_pass: Pass, cast: bool) -> float:
    """Bytes that a pass holds at its peak besides weights and gradients: those of a gradient count
    while it is made. cast: of products, to bf16."""
    for weight in model.parameters():
        if weight.requires_grad:
            weight.register_post_accumulate_grad_hook(_drop_gradient)
    with mode, PeakMemory(besides=[*model.parameters(), *model.buffers()]) as memory:
        with torch.autocast("cpu", torch.bfloat16, cast):
            loss = _loss(model, one_pass, cast)
        loss.backward()
    return float(memory.peak)


def _loss(model: Any, one_pass: Pass, cast: bool) -> torch.Tensor:
    """What a pass gives, laid out as by its collator."""
    ids = torch.zeros(one_pass.samples, one_pass.length, dtype=torch.long)
    mask = None
    if one_pass.collator is collate_packed:
        # Attention over one long sample holds as much as over many short ones.
        ids = ids.view(1, -1)
    else:
        mask = torch.ones_like(ids)
    if one_pass.collator is collate_padded:
        loss: torch.Tensor = model(
            input_ids=ids, attention_mask=mask, labels=ids, use_cache=False
        ).loss
        return loss
    kept = torch.arange(math.ceil((one_pass.responses or ids.numel()) / len(ids)))  # of each row
    logits = model(
        input_ids=ids, attention_mask=mask, logits_to_keep=kept, use_cache=False
    ).logits.flatten(0, 1)
    loss = summed_nll(logits, ids[:, : len(kept)].flatten())
    if cast:  # Accelerate gives back what the model gave in fp32, and with it the logits.
        _ = logits.float()
    return loss


def _drop_gradient(weight: torch.Tensor) -> None:
    weight.grad = None
