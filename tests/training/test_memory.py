"""The memory that is foretold is the memory that is held."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, PreTrainedConfig, Qwen2Config

from instructdiff_ray.config.training import CalibrateConfig
from instructdiff_ray.engine.memory import GIB, PeakMemory
from instructdiff_ray.training.adapter import with_adapter
from instructdiff_ray.training.batches import (
    choose_collator,
    collate_packed,
    collate_responses,
    use,
)
from instructdiff_ray.training.memory import MemoryModel, Pass, lacking_memory
from instructdiff_ray.training.training_set import IGNORED

# Widths of 7B, four of its layers: 2.0 billion parameters.
QWEN = Qwen2Config(
    hidden_size=3584,
    intermediate_size=18_944,
    num_hidden_layers=4,
    num_attention_heads=28,
    num_key_value_heads=4,
    vocab_size=152_064,
)

SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1000,
}


@pytest.fixture
def config() -> PreTrainedConfig:
    return Qwen2Config(**SHAPE, tie_word_embeddings=True)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("model_type", "prompt"), [("qwen2", 1), ("qwen2", 150), ("gemma2", 100)])
def test_a_real_pass_holds_what_one_without_numbers_foretells(
    config: PreTrainedConfig, model_type: str, prompt: int, checkpointing: bool
) -> None:
    if model_type == "gemma2":  # is padded
        config = Gemma2Config(**{name: getattr(config, name) for name in SHAPE}, head_dim=16)
    hyper = CalibrateConfig(gradient_checkpointing=checkpointing)
    collator = collate_responses if model_type == "gemma2" else collate_packed
    one_pass = Pass(3, 300, 3 * (300 - prompt), collator)
    foretold = MemoryModel(config, "fp32").training(hyper, one_pass).activations
    model = AutoModelForCausalLM.from_config(config).train()
    assert choose_collator(model, None) is collator
    if checkpointing:
        model.gradient_checkpointing_enable()
    for weight in model.parameters():
        weight.register_post_accumulate_grad_hook(lambda weight: setattr(weight, "grad", None))
    ids = torch.randint(0, 1000, (300,)).tolist()
    batch = collator([{"input_ids": ids, "labels": [IGNORED] * prompt + ids[prompt:]}] * 3)
    with PeakMemory(besides=[*model.parameters(), *model.buffers()]) as memory:
        model(**batch, num_items_in_batch=10, use_cache=False).loss.backward()
    assert memory.peak == pytest.approx(foretold, rel=0.05)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_an_adapter_s_pass_holds_what_one_without_numbers_foretells(
    config: PreTrainedConfig, checkpointing: bool
) -> None:
    hyper = CalibrateConfig(gradient_checkpointing=checkpointing, lora_rank=4)
    foretold = MemoryModel(config, "fp32").training(hyper, Pass(3, 300)).activations
    model = AutoModelForCausalLM.from_config(config).train()
    use(model, collate_packed)
    if checkpointing:
        model.gradient_checkpointing_enable()
    adapted = with_adapter(model, hyper)
    ids = torch.randint(0, 1000, (300,)).tolist()
    batch = collate_packed([{"input_ids": ids, "labels": [IGNORED] + ids[1:]}] * 3)
    with PeakMemory(besides=[*adapted.parameters(), *adapted.buffers()]) as memory:
        adapted(**batch, num_items_in_batch=10, use_cache=False).loss.backward()
    assert memory.peak == pytest.approx(foretold, rel=0.05)


def test_what_is_trained_and_sharded_decides_what_is_held(config: PreTrainedConfig) -> None:
    model = MemoryModel(config, "fp32")
    count = AutoModelForCausalLM.from_config(config).num_parameters()
    plain = model.training(CalibrateConfig(), Pass(8, 256))
    assert (plain.weights, plain.gradients, plain.optimizer) == (4 * count, 4 * count, 8 * count)
    assert plain.peak == 16 * count + plain.activations
    alone = model.training(CalibrateConfig(), Pass(8, 256, accumulates=False))
    assert alone.peak == 12 * count + max(4 * count, plain.activations)
    sharded = model.training(CalibrateConfig(), Pass(8, 256, shards=4))
    assert sharded.weights == count and sharded.optimizer == 2 * count
    lora = model.training(CalibrateConfig(lora_rank=8), Pass(8, 256))
    assert (lora.weights, lora.gradients, lora.optimizer) == (4 * count, 0, 0)
    assert model.training(CalibrateConfig(optimizer="adafactor"), Pass(8, 256)).optimizer == 0
    saving = model.training(CalibrateConfig(gradient_checkpointing=True), Pass(8, 256))
    assert saving.activations < plain.activations


def test_a_training_that_will_not_fit_is_refused_with_what_would() -> None:
    hyper = CalibrateConfig(gradient_checkpointing=True)
    assert lacking_memory(QWEN, hyper, "bf16", Pass(1, 2048, shards=8), 24 * GIB) is None
    line = lacking_memory(QWEN, hyper, "bf16", Pass(8, 2048), 24 * GIB)
    assert line and line.startswith("this training needs about ")
    assert "GiB and the device has 24; what would fit: cluster.train.workers=8" in line
    assert "calibrate.lora_rank=16" in line
    adapter = CalibrateConfig(gradient_checkpointing=True, lora_rank=16)
    line = lacking_memory(QWEN, adapter, "bf16", Pass(8, 2048), 4 * GIB)
    assert line and line.endswith("what would fit: a larger device")
