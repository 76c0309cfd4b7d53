"""Supervised fine-tuning: what a Ray Train worker does, with the transformers Trainer inside.

The loss is on the responses only (batches.py). Each machine has the tokens of the whole training
set on its disk; the Trainer's own sampler, seeded, splits it, so that an optimizer step sees the
same samples however many workers and accumulation steps share them.
"""

from __future__ import annotations

import os
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import ray.train
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from transformers import (
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from instructdiff_ray.engine.device import UNLIKE, device_failed, model_unlike
from instructdiff_ray.engine.throughput import keep_freed_memory
from instructdiff_ray.errors import UserError
from instructdiff_ray.models.folder import folder_identity
from instructdiff_ray.models.model import Model
from instructdiff_ray.storage.local_copy import temporary_copy
from instructdiff_ray.training.adapter import with_adapter
from instructdiff_ray.training.arguments import device_memory, trainer_arguments
from instructdiff_ray.training.batches import (
    Collator,
    attends_packed,
    choose_collator,
    collate_packed,
    collate_padded,
    use,
)
from instructdiff_ray.training.checkpoints import (
    KeepCheckpoints,
    first_rank,
    first_rank_says,
    last_checkpoint,
    naming_the_checkpoint,
)
from instructdiff_ray.training.memory import Pass, lacking_memory
from instructdiff_ray.training.task import EXAMPLES, TRAINED, TrainTask
from instructdiff_ray.training.trackers import tensorboard_files
from instructdiff_ray.training.training_set import Examples


def train(task: TrainTask, mailbox: Any) -> None:
    """What one worker does, a process with its share of every batch: train, and save."""
    world = ray.train.get_context().get_world_size()
    if not task.resources.gpus_per_worker:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // world))
        keep_freed_memory()
    set_seed(task.seed)
    minutes = task.resources.checkpoint_minutes
    keeper = KeepCheckpoints(task.checkpoints, minutes * 60)
    with ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory())
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        stack.enter_context(tensorboard_files(task.logs))
        samples = stack.enter_context(temporary_copy(task.scratch.sub(EXAMPLES).path))
        checkpoint = stack.enter_context(last_checkpoint(task.checkpoints))
        examples = Examples(samples, task.examples)
        arguments = trainer_arguments(task, examples.longest, len(examples), world, scratch)
        collator, refusal = first_rank_says(
            layout(task, arguments, examples, world) if first_rank() else None
        )
        if refusal:  # on all workers, or the others would wait for this one
            raise UserError(refusal)
        if arguments.fsdp:
            _shard(arguments)
        model = base_model(task, sharded=bool(arguments.fsdp)).train()
        use(model, collator)
        if task.calibrate.lora_rank:
            model = with_adapter(model, task.calibrate)
        train_dataset: Any = examples
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=train_dataset,
            data_collator=collator,
            callbacks=[ReportSteps(mailbox), keeper],
        )
        if trainer.accelerator.ddp_handler:  # else gradients are held twice
            trainer.accelerator.ddp_handler.gradient_as_bucket_view = True
        if trainer.model_accepts_loss_kwargs:  # the loss is a mean over the tokens of a whole step
            examples.fill_up(task.calibrate.global_batch_size)
        with naming_the_checkpoint(checkpoint, keeper):
            trained = trainer.train(resume_from_checkpoint=checkpoint)
        if arguments.fsdp:
            # Checkpoints are of shards; only what is left at the end is gathered.
            trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
        # Every worker takes part, for a sharded model is gathered; rank 0 writes.
        trainer.save_model(folder)
        if trainer.is_world_process_zero():
            notes = {
                "batches": collator.__name__,
                "tokens": task.calibrate.epochs * examples.tokens,
                # Of all epochs; a training that went on from a checkpoint doesn't know.
                "train_s": None if checkpoint else trained.metrics["train_runtime"],
            }
            _finish(task, model, folder, notes)


def _finish(task: TrainTask, model: PreTrainedModel, folder: str, notes: dict[str, Any]) -> None:
    """Complete the saved model's folder and upload it. notes: for whoever waits for it."""
    task.encoding.encoder().tokenizer.save_pretrained(folder)
    if task.calibrate.lora_rank:
        model.config.save_pretrained(folder)  # a whole model's is there
    os.remove(os.path.join(folder, "training_args.bin"))  # a pickle that nothing reads
    task.scratch.write_json(TRAINED, {"weights": folder_identity(folder), **notes})
    task.target.upload(folder)


def base_model(task: TrainTask, sharded: bool) -> PreTrainedModel:
    """The model that is trained. Where it is sharded, worker 0 reads the weights and hands the
    others their shards, so that no machine holds a copy for each of its workers."""
    if not sharded or first_rank():
        return task.model.load("fp32")
    model = task.model.without_weights()
    # Accelerate tells parameters apart by their addresses. So they get some, which nothing is ever
    # written to, and which take no memory.
    model._apply(
        lambda tensor: torch.empty_like(tensor, device="cpu") if tensor.is_meta else tensor
    )
    model.tie_weights()
    return model


def layout(
    task: TrainTask, arguments: TrainingArguments, examples: Examples, world: int
) -> tuple[Collator, str | None]:
    """How batches are laid out on all workers, and the line that says so where the device will not
    hold the training. Before any weights are loaded, and on worker 0 alone."""
    collator: Collator = collate_packed
    # The trial and the adapter whose memory is foretold draw random weights.
    with torch.random.fork_rng():
        # Nothing takes less, and what is tried takes memory too.
        refusal = _refusal(task, arguments, examples, world, collator)
        if not refusal:
            collator = tried_collator(task.model, arguments)
            torch.cuda.empty_cache()  # what was tried is gone
            if collator is not collate_packed:
                refusal = _refusal(task, arguments, examples, world, collator)
    return collator, refusal


def tried_collator(model: Model, arguments: TrainingArguments) -> Collator:
    """The one that suits a model of two layers like this one, with random weights; samples are
    padded where there can be no such model, or no room for it."""
    packs = attends_packed(model.load_config())
    try:
        trial: Any = model.with_random_weights(layers=2)
        for table in (trial.get_input_embeddings(), trial.get_output_embeddings()):
            if table is not None:
                table.requires_grad_(False)  # their gradients would be most of the memory
        trial = trial.to(arguments.device).train()
        return choose_collator(trial, torch.bfloat16 if arguments.bf16 else None, packs)
    except UNLIKE as error:
        if device_failed(error):
            raise
        print(f"samples are padded: {error}", file=sys.stderr, flush=True)
        return collate_padded


def _shard(arguments: TrainingArguments) -> None:
    """Makes accelerate's state the one of sharded training, before the Trainer asks for it.

    Accelerate shards on GPUs only and would leave the model whole on processors, without a word.
    Gradients are added up in fp32, as where nothing is sharded; it would add them up in the type of
    the forward pass.
    """
    plugin = FullyShardedDataParallelPlugin(**arguments.fsdp_plugin_args)
    state = Accelerator(
        mixed_precision="bf16" if arguments.bf16 else "no", fsdp_plugin=plugin
    ).state
    if arguments.bf16 and plugin.mixed_precision_policy is None:  # on processors
        plugin.set_mixed_precision("bf16")
    if policy := plugin.mixed_precision_policy:
        plugin.mixed_precision_policy = replace(policy, reduce_dtype=torch.float32)
    state.distributed_type, state.fsdp_plugin = DistributedType.FSDP, plugin
    # From which every further AcceleratorState, of the Trainer or of an optimizer, takes the type.
    PartialState().distributed_type = DistributedType.FSDP


def _refusal(
    task: TrainTask,
    arguments: TrainingArguments,
    examples: Examples,
    world: int,
    collator: Collator,
) -> str | None:
    """The line that says so where the device will not hold the training. Of a model that can't be
    run without numbers nothing is known, and it is tried."""
    device = device_memory(task.resources)
    if device is None or task.model.trust_remote_code:
        return None
    samples = arguments.per_device_train_batch_size
    try:
        return lacking_memory(
            task.model.load_config(),
            task.calibrate,
            task.precision,
            Pass(
                samples,
                examples.longest,
                samples * examples.longest_response,
                collator,
                shards=world if arguments.fsdp else 1,
                # Gradients are there from the start: of earlier passes, or as DDP's buckets.
                accumulates=arguments.gradient_accumulation_steps > 1
                or (world > 1 and not arguments.fsdp),
            ),
            device,
        )
    except UNLIKE as error:
        if not model_unlike(error):
            raise
        print(f"the memory of this training is not foretold: {error}", file=sys.stderr, flush=True)
        return None


class ReportSteps(TrainerCallback):
    """Tells the driver how far the training is; from rank 0, without waiting."""

    def __init__(self, mailbox: Any) -> None:
        self.mailbox = mailbox

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if state.is_world_process_zero and logs and "loss" in logs:
            self.mailbox.put.remote((state.global_step, state.max_steps, float(logs["loss"])))
