"""Samples without padding between them: the same as each alone, or the model is padded."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import (
    GPTJConfig,
    GPTJForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PhimoeConfig,
    PhimoeForCausalLM,
    PreTrainedModel,
)

from instructdiff_ray.engine.batch import Batch
from instructdiff_ray.engine.metrics import SampleScorer
from instructdiff_ray.engine.packing import attend
from tests.engine.test_metrics import SHAPE, VOCABULARY, WIDTH, assert_same, build, random_samples

CPU = torch.device("cpu")


def windowed() -> PreTrainedModel:
    """Every token sees itself and the six before it."""
    torch.manual_seed(0)
    return MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=7)).eval()


def recurrent() -> PreTrainedModel:
    """Its state runs through all that lies in a row."""
    torch.manual_seed(0)
    config = MambaConfig(hidden_size=WIDTH, num_hidden_layers=2, vocab_size=VOCABULARY)
    return MambaForCausalLM(config).eval()


@pytest.mark.parametrize("name", ["llama", "cohere", "granite", "gpt2", "mixtral"])
def test_causal_models_are_packed(name: str) -> None:
    assert SampleScorer(build(name)).packed


def test_a_window_ends_at_a_samples_border_as_it_does_alone() -> None:
    model, samples = windowed(), random_samples(4, 9)
    assert max(len(ids) for ids, _ in samples) > 3 * model.config.sliding_window
    assert SampleScorer(model).packed
    assert_same(model, samples)


def window_in_masks_only() -> PreTrainedModel:
    """Its attention is not told of the window, and a check by short samples can't see it."""
    torch.manual_seed(0)
    config = PhimoeConfig(**SHAPE, num_local_experts=2, sliding_window=40)
    return PhimoeForCausalLM(config).eval()


def own_attention() -> PreTrainedModel:
    """Its attention is not transformers' to choose."""
    torch.manual_seed(0)
    config = GPTJConfig(
        n_embd=WIDTH, n_layer=2, n_head=4, rotary_dim=4, vocab_size=VOCABULARY, n_positions=128
    )
    return GPTJForCausalLM(config).eval()


@pytest.mark.parametrize(
    "model",
    [recurrent(), build("gemma2"), window_in_masks_only(), own_attention()],
    ids=["recurrent", "softcap", "window", "own"],
)
def test_a_model_that_would_see_its_neighbours_is_padded(model: PreTrainedModel) -> None:
    before = model.config._attn_implementation
    assert not SampleScorer(model).packed
    assert model.config._attn_implementation == before
    assert_same(model, random_samples(4, 9))


def test_attention_refuses_what_it_does_not_know() -> None:
    states = torch.randn(3, 1, 4, 5, 8)
    with pytest.raises(ValueError, match="softcap"):
        attend(torch.nn.Module(), *states, None, softcap=30.0)
    with pytest.raises(ValueError, match="no mask"):
        attend(torch.nn.Module(), *states, torch.ones(1, 1, 5, 5))
    with pytest.raises(ValueError, match="one row"):
        attend(torch.nn.Module(), *states.expand(3, 2, 4, 5, 8), None)


def test_a_batch_knows_where_everything_lies() -> None:
    ids = [[5, 6, 7], [8, 9], [10, 11, 12, 13]]
    response = [[False, True, True], [False, True], [False, False, True, False]]
    batch = Batch.of([np.array(some) for some in ids], response, CPU)
    assert batch.tokens.tolist() == [5, 6, 7, 8, 9, 10, 11, 12, 13]
    assert batch.positions.tolist() == [0, 1, 2, 0, 1, 0, 1, 2, 3]
    assert batch.starts.tolist() == [0, 3, 5, 9]
    assert batch.targets.tolist() == [6, 7, 9, 12]
    assert batch.tokens[batch.contexts].tolist() == [5, 6, 8, 11]
    assert batch.rows.tolist() == [0, 0, 1, 2]
    assert batch.counts.tolist() == [2, 1, 1]
    padded, where = batch.padded()
    assert padded.tolist() == [[5, 6, 7, 0], [8, 9, 0, 0], [10, 11, 12, 13]]
    assert padded.flatten()[where].tolist() == batch.tokens.tolist()
