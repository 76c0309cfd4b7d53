"""Supervised fine-tuning: what a Ray Train worker does, with the transformers Trainer inside.

The loss is on the responses only. Each worker holds the tokens of the whole training set; the
Trainer's own sampler, seeded, splits it, so that an optimizer step sees the same samples however
many workers and accumulation steps share them.
"""

from __future__ import annotations

import math
import os
import tempfile
from typing import Any

import numpy as np
import ray.train
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import (
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from instructdiff_ray.config.cluster import TrainResources
from instructdiff_ray.config.training import CalibrateConfig
from instructdiff_ray.engine.throughput import keep_freed_memory
from instructdiff_ray.errors import UserError
from instructdiff_ray.models.model import folder_identity
from instructdiff_ray.models.template import Encoded, training_example
from instructdiff_ray.sample import Part
from instructdiff_ray.training.checkpoints import KeepCheckpoints, fetch_checkpoint, resuming
from instructdiff_ray.training.task import DIGEST, TrainTask

# Adam with fp32 master weights: 4 bytes each for a weight, and for the gradient and two moments of
# one that is trained.
WEIGHT_BYTES, TRAINING_BYTES = 4, 12
# What activations and the allocator need besides.
USABLE_DEVICE_MEMORY = 0.7
IGNORED = -100  # label without a loss


def train(task: TrainTask, mailbox: Any) -> None:
    """What one worker does, a process with its share of every batch: train, and save."""
    world = ray.train.get_context().get_world_size()
    if not task.resources.gpus_per_worker:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // world))
        keep_freed_memory()
    set_seed(task.seed)
    examples = Examples(task)
    model = task.model.load("fp32").train()
    if task.calibrate.lora_rank:
        model = with_adapter(model, task.calibrate)
    with tempfile.TemporaryDirectory() as scratch, tempfile.TemporaryDirectory() as folder:
        minutes = task.resources.checkpoint_minutes
        keeper = KeepCheckpoints(task.checkpoints, minutes * 60)
        trainer = Trainer(
            model=model,
            args=_arguments(task, model, examples, world, scratch),
            train_dataset=examples,
            data_collator=collate,
            callbacks=[ReportSteps(mailbox), keeper],
        )
        if trainer.model_accepts_loss_kwargs:  # the loss is a mean over the tokens of a whole step
            examples.fill_up(task.calibrate.global_batch_size)
        with resuming(keeper):
            trainer.train(resume_from_checkpoint=fetch_checkpoint(task.checkpoints, scratch))
        # Every worker takes part, for a sharded model is gathered; rank 0 writes.
        trainer.save_model(folder)
        if trainer.is_world_process_zero():
            task.encoding.encoder().tokenizer.save_pretrained(folder)
            if task.calibrate.lora_rank:
                model.config.save_pretrained(folder)  # a whole model's is there
            os.remove(os.path.join(folder, "training_args.bin"))  # a pickle that nothing reads
            task.samples.write_json(DIGEST, folder_identity(folder))
            task.target.upload(folder)


def with_adapter(model: PreTrainedModel, hyper: CalibrateConfig) -> PreTrainedModel:
    """The model with all of its parameters frozen, and a LoRA adapter to train."""
    from peft import LoraConfig, get_peft_model

    rank = hyper.lora_rank or 0
    # α = 2r, as is usual: the size of a step then hardly depends on the rank.
    config = LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    if hyper.gradient_checkpointing:  # its layers would have nothing to differentiate
        model.enable_input_require_grads()
    wrapped: Any = get_peft_model(model, config)
    return wrapped


class Examples(Dataset):
    """The training set, encoded, in the order of its ids; `longest` is in tokens."""

    def __init__(self, task: TrainTask) -> None:
        table = task.samples.read_table("train.parquet")
        encoder = task.encoding.encoder()
        eos, chat = encoder.tokenizer.eos_token_id, task.encoding.template.chat
        self.items: list[dict[str, np.ndarray]] = []
        # In chunks, kept as int32: a worker holds the set, and as Python's numbers it is 20 times
        # as large.
        for batch in table.to_batches(max_chunksize=1024):
            samples = [[Part(**part) for part in parts] for parts in batch["parts"].to_pylist()]
            for encoded in encoder.encode(samples):
                if not isinstance(encoded, Encoded):
                    # The pool's own model encoded all at ingest; this is another's tokenizer.
                    raise UserError(
                        f"{task.model.path} can't be trained on a selected sample"
                        f" ({encoded.reason}: {encoded.detail}); select again with a"
                        " calibrate.max_length that suits both models, or data.over_long=truncate"
                    )
                example = training_example(encoded, eos, chat, task.encoding.max_length)
                self.items.append({k: np.array(v, np.int32) for k, v in example.items()})
        self.longest = max(len(item["input_ids"]) for item in self.items)

    def fill_up(self, multiple: int) -> None:
        """Add samples without a loss, up to whole steps; the sampler spreads them over the epoch.

        Else accelerate would fill up an epoch's last step with samples of its first, as many as the
        workers ask for: and the model would depend on their number.
        """
        empty = {"input_ids": np.zeros(1, np.int32), "labels": np.full(1, IGNORED, np.int32)}
        self.items += [empty] * (-len(self.items) % multiple)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, position: int) -> dict[str, list[int]]:
        return {name: values.tolist() for name, values in self.items[position].items()}


def collate(items: list[dict[str, list[int]]]) -> dict[str, Tensor]:
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


def micro_batch_size(per_worker: int, longest: int, tokens_per_device: int) -> int:
    """Samples of one forward pass: the largest divisor of a worker's share of the global batch
    whose padded size is within the token budget, so that accumulation meets the batch exactly."""
    fitting = max(1, tokens_per_device // longest)
    return max(n for n in range(1, per_worker + 1) if per_worker % n == 0 and n <= fitting)


def _arguments(
    task: TrainTask, model: PreTrainedModel, examples: Examples, world: int, folder: str
) -> TrainingArguments:
    hyper = task.calibrate
    per_worker = hyper.global_batch_size // world
    micro = micro_batch_size(per_worker, examples.longest, task.resources.tokens_per_device)
    steps = hyper.epochs * math.ceil(len(examples) / hyper.global_batch_size)
    fsdp = _wants_fsdp(task.resources, model, world)
    return TrainingArguments(
        output_dir=folder,
        num_train_epochs=hyper.epochs,
        learning_rate=hyper.learning_rate,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=per_worker // micro,
        optim="adamw_torch",
        weight_decay=hyper.weight_decay,
        lr_scheduler_type="cosine",
        # Rounded down: the first of the warm-up steps has a rate of 0, and of one step in all
        # nothing would be learned.
        warmup_steps=math.floor(hyper.warmup_steps_ratio * steps),
        max_grad_norm=hyper.max_grad_norm,
        bf16=task.precision == "bf16",
        gradient_checkpointing=hyper.gradient_checkpointing and not fsdp,
        fsdp=fsdp or None,  # type: ignore[arg-type]  # annotated as it was before FSDP2
        fsdp_config={"activation_checkpointing": hyper.gradient_checkpointing} if fsdp else None,
        use_cpu=not task.resources.gpus_per_worker,
        seed=task.seed,
        save_strategy="no",  # but when a callback asks for it
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
    )


def _wants_fsdp(resources: TrainResources, model: PreTrainedModel, world: int) -> bool:
    if resources.fsdp is not None:
        return resources.fsdp
    if world == 1 or not resources.gpus_per_worker:
        return False
    memory = torch.cuda.get_device_properties(0).total_memory
    trained = model.num_parameters(only_trainable=True)
    needed = WEIGHT_BYTES * model.num_parameters() + TRAINING_BYTES * trained
    return needed > USABLE_DEVICE_MEMORY * memory


class ReportSteps(TrainerCallback):
    """Tells the driver how far the training is; from rank 0, without waiting."""

    def __init__(self, mailbox: Any) -> None:
        self.mailbox = mailbox

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if state.is_world_process_zero and logs and "loss" in logs:
            self.mailbox.put.remote((state.global_step, state.max_steps, float(logs["loss"])))
