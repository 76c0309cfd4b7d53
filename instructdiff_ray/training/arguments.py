"""What the transformers Trainer is told of a training: its batches and steps, and whether the model
is sharded."""

from __future__ import annotations

import math
from typing import Any

import torch
from transformers import TrainingArguments

from instructdiff_ray.config.cluster import TrainResources
from instructdiff_ray.config.training import CalibrateConfig
from instructdiff_ray.training.memory import FP32
from instructdiff_ray.training.task import TrainTask

# What activations and the allocator need besides.
USABLE_DEVICE_MEMORY = 0.7


def micro_batch_size(per_worker: int, longest: int, tokens_per_device: int) -> int:
    """Samples of one forward pass: the largest divisor of a worker's share of the global batch
    whose padded size is within the token budget, so that accumulation meets the batch exactly."""
    fitting = max(1, tokens_per_device // longest)
    return max(n for n in range(1, per_worker + 1) if per_worker % n == 0 and n <= fitting)


def trainer_arguments(
    task: TrainTask, longest: int, count: int, world: int, folder: str
) -> TrainingArguments:
    """What the Trainer is told. longest: of the examples, in tokens; count: how many there are;
    world: workers; folder: takes what is saved."""
    hyper = task.calibrate
    per_worker = hyper.global_batch_size // world
    micro = micro_batch_size(per_worker, longest, task.resources.tokens_per_device)
    steps = hyper.epochs * math.ceil(count / hyper.global_batch_size)
    fsdp = _wants_fsdp(task, world)
    return TrainingArguments(
        output_dir=folder,
        num_train_epochs=hyper.epochs,
        learning_rate=hyper.learning_rate,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=per_worker // micro,
        optim=_optimizer(task),
        weight_decay=hyper.weight_decay,
        lr_scheduler_type="cosine",
        # Rounded down: the first of the warm-up steps has a rate of 0, and of one step in all
        # nothing would be learned.
        warmup_steps=math.floor(hyper.warmup_steps_ratio * steps),
        max_grad_norm=hyper.max_grad_norm,
        bf16=task.precision == "bf16",
        gradient_checkpointing=hyper.gradient_checkpointing and not fsdp,
        fsdp=fsdp or None,  # type: ignore[arg-type]  # annotated as it was before FSDP2
        fsdp_config=_fsdp_config(hyper) if fsdp else None,
        # With shards, a step whose passes are not reduced each would hold whole gradients.
        accelerator_config={"gradient_accumulation_kwargs": {"sync_each_batch": fsdp}},
        use_cpu=not task.resources.gpus_per_worker,
        seed=task.seed,
        save_strategy="no",  # but when a callback asks for it
        logging_steps=1,
        report_to=list(task.resources.report_to) or "none",
        run_name=task.name,
        disable_tqdm=True,
        remove_unused_columns=False,
    )


def _optimizer(task: TrainTask) -> str:
    """Its name in transformers. AdamW is fused on GPUs: what is not holds a copy of all gradients
    in its step."""
    if task.calibrate.optimizer == "adafactor":
        return "adafactor"
    return "adamw_torch_fused" if task.resources.gpus_per_worker else "adamw_torch"


def _fsdp_config(hyper: CalibrateConfig) -> dict[str, Any]:
    return {
        "activation_checkpointing": hyper.gradient_checkpointing,
        # Each worker saves what it holds.
        "state_dict_type": "SHARDED_STATE_DICT",
        # The weights are worker 0's, see `base_model` in worker.py.
        "cpu_ram_efficient_loading": True,
    }


def _wants_fsdp(task: TrainTask, world: int) -> bool:
    resources, hyper = task.resources, task.calibrate
    if resources.fsdp is not None:
        return resources.fsdp
    # Adafactor's sums are of whole matrices.
    if world == 1 or not resources.gpus_per_worker or hyper.optimizer != "adamw":
        return False
    device = device_memory(resources)
    assert device is not None
    # Weights, and where these are trained their gradients and two moments.
    copies = 1 if hyper.lora_rank else 4
    return copies * FP32 * task.model.parameters() > USABLE_DEVICE_MEMORY * device


def device_memory(resources: TrainResources) -> int | None:
    """Bytes of this worker's GPU; None on processors, whose memory is not this worker's alone."""
    if not resources.gpus_per_worker:
        return None
    return int(torch.cuda.get_device_properties(0).total_memory)
