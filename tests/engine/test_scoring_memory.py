"""The memory of scoring that is foretold is the memory that is held."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen2Config

from instructdiff_ray.engine.batch import Batch
from instructdiff_ray.engine.memory import PeakMemory, ScoringMemory
from instructdiff_ray.engine.metrics import SampleScorer


def test_the_peak_is_of_what_is_alive_at_one_time() -> None:
    with PeakMemory() as memory:
        a = torch.zeros(1000)
        b = a + 1
        del a
        c = b.view(10, 100).mul_(2)  # a view, written in place
        d = torch.cat([c, c])
    assert memory.peak == 3 * 4000
    del b, c
    assert memory.alive == 8000
    del d
    assert memory.alive == 0
    weight = torch.zeros(1000, 1000)
    with PeakMemory(besides=[weight]) as memory:
        torch.zeros(1, 1000) @ weight.t()
    assert memory.peak == 8000  # the view of the weight is not new


@pytest.mark.parametrize("layers", [1, 4])
def test_a_real_pass_holds_what_one_without_numbers_foretells(layers: int) -> None:
    config = Qwen2Config(
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=5000,
        tie_word_embeddings=True,
    )
    foretold = ScoringMemory.of(config, "fp32", 4096, "cpu")
    model = AutoModelForCausalLM.from_config(config).eval()
    weights = [*model.parameters()]
    assert foretold.weights == sum(4 * weight.numel() for weight in weights)
    assert foretold.piece == pytest.approx(4 * 5000 * 256, rel=0.001)  # the embeddings
    scorer = SampleScorer(model)
    batch = Batch.of([np.zeros(512, np.int64)] * 8, [np.arange(512) > 0] * 8, torch.device("cpu"))
    with PeakMemory(besides=[*weights, *model.buffers()]) as memory:
        scorer.score(batch)
    # The head's tiles are counted as large as they may be, which is little.
    assert memory.peak == pytest.approx(foretold.forward, rel=0.15)


def test_layers_are_split_over_devices_and_a_pass_is_not() -> None:
    memory = ScoringMemory(weights=80, piece=3, forward=7)
    assert memory.on_each(models=2, devices=1) == 167
    assert memory.on_each(models=1, devices=4) == 30
