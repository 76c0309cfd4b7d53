"""How samples lie in a training pass changes neither the loss nor a gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import (
    Cohere2Config,
    Cohere2ForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from instructdiff_ray.config.training import CalibrateConfig
from instructdiff_ray.training import batches
from instructdiff_ray.training.adapter import with_adapter
from instructdiff_ray.training.batches import (
    Collator,
    Item,
    choose_collator,
    collate_packed,
    collate_padded,
    collate_responses,
    summed_nll,
)
from instructdiff_ray.training.training_set import IGNORED

WORDS = 97
TINY: dict[str, Any] = {
    "vocab_size": WORDS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
GPT2 = {"vocab_size": WORDS, "n_embd": 32, "n_layer": 2, "n_head": 4}
UNDROPPED = {"resid_pdrop": 0.0, "embd_pdrop": 0.0}


class Whole(LlamaForCausalLM):
    def forward(
        self, input_ids: Any = None, attention_mask: Any = None, labels: Any = None, **kwargs: Any
    ) -> Any:
        if "logits_to_keep" in kwargs:
            raise TypeError("forward() got an unexpected keyword argument 'logits_to_keep'")
        return super().forward(
            input_ids=input_ids, attention_mask=attention_mask, labels=labels, **kwargs
        )


MODELS: dict[str, tuple[Callable[[], PreTrainedModel], Collator]] = {
    "llama": (lambda: LlamaForCausalLM(LlamaConfig(**TINY)), collate_packed),
    "qwen2, tied": (
        lambda: Qwen2ForCausalLM(Qwen2Config(**TINY, tie_word_embeddings=True)),
        collate_packed,
    ),
    "mistral, a window": (
        lambda: MistralForCausalLM(MistralConfig(**TINY, sliding_window=7)),
        collate_packed,
    ),
    "cohere, scaled logits": (
        lambda: Cohere2ForCausalLM(Cohere2Config(**TINY, sliding_window=7)),
        collate_packed,
    ),
    "gemma 2, capped attention": (
        lambda: Gemma2ForCausalLM(Gemma2Config(**TINY, head_dim=8)),
        collate_responses,
    ),
    "gpt2": (
        lambda: GPT2LMHeadModel(GPT2Config(**GPT2, **UNDROPPED, attn_pdrop=0.0)),
        collate_packed,
    ),
    "gpt2, dropped attention": (
        lambda: GPT2LMHeadModel(GPT2Config(**GPT2, **UNDROPPED, attn_pdrop=0.5)),
        collate_responses,
    ),
    "a head of its own": (lambda: Whole(LlamaConfig(**TINY)), collate_padded),
}


def samples(*lengths: int) -> list[Item]:
    """Samples of these lengths whose second half is the response."""
    items: list[Item] = []
    for length in lengths:
        ids = torch.randint(0, WORDS, (length,)).tolist()
        prompt = length // 2 + 1
        items.append({"input_ids": ids, "labels": [IGNORED] * prompt + ids[prompt:]})
    return items


def gradients(model: PreTrainedModel, batch: dict[str, Any], tokens: int) -> dict[str, Any]:
    """Of every trained weight, and the loss."""
    model.zero_grad()
    loss = model(**batch, num_items_in_batch=tokens, use_cache=False).loss
    loss.backward()
    found = {n: w.grad.clone() for n, w in model.named_parameters() if w.grad is not None}
    return {**found, "loss": loss.detach()}


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.allclose(found[name], value, atol=1e-6, rtol=1e-4), name


@pytest.mark.parametrize("name", MODELS)
def test_the_loss_and_its_gradients_are_those_of_padded_samples(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "TILE_BYTES", 4 * WORDS * 5)  # several tiles
    torch.manual_seed(0)
    make, expected_collator = MODELS[name]
    model = make().train()
    nn.init.normal_(model.get_input_embeddings().weight, std=0.5)  # attention that matters
    items = samples(9, 30, 1, 4, 17)
    # A sample without a loss: what an epoch's last step is filled up with.
    items.append({"input_ids": [0], "labels": [IGNORED]})
    tokens = 40  # of a whole step, of which this is a pass
    plain = gradients(model.eval(), collate_padded(items), tokens)
    collator = choose_collator(model.train(), None)
    assert collator is expected_collator and model.training
    assert_same(gradients(model.eval(), collator(items), tokens), plain)
    assert "packed" not in model.config.to_json_string()


def test_an_adapter_learns_the_same_of_packed_samples() -> None:
    torch.manual_seed(0)
    base = LlamaForCausalLM(LlamaConfig(**TINY))
    adapted = with_adapter(base, CalibrateConfig(lora_rank=4)).train()
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight)
    items = samples(9, 30, 4)
    plain = gradients(adapted, collate_padded(items), 20)
    assert choose_collator(adapted.get_base_model(), None) is collate_packed
    assert_same(gradients(adapted, collate_packed(items), 20), plain)


def test_a_pass_of_nothing_but_samples_without_a_loss_has_gradients_of_zero() -> None:
    model = LlamaForCausalLM(LlamaConfig(**TINY)).train()
    collator = choose_collator(model, None)
    batch = collator([{"input_ids": [0], "labels": [IGNORED]}] * 3)
    found = gradients(model, batch, 5)
    assert found.keys() == {*dict(model.named_parameters()), "loss"}
    assert all(not value.any() for value in found.values())


def test_in_bf16_samples_are_packed_too() -> None:
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(**TINY)).train()
    assert choose_collator(model, torch.bfloat16) is collate_packed


@given(st.integers(1, 40), st.integers(1, 9))
def test_the_sum_is_the_same_in_tiles_of_any_size(tokens: int, rows: int) -> None:
    logits = torch.randn(tokens, WORDS, requires_grad=True)
    targets = torch.randint(0, WORDS, (tokens,))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches, "TILE_BYTES", 4 * WORDS * rows)
        total = summed_nll(logits, targets)
    plain = nn.functional.cross_entropy(logits, targets, reduction="sum")
    assert torch.allclose(total, plain, rtol=1e-5)
    (found,) = torch.autograd.grad(total, logits)
    (expected,) = torch.autograd.grad(plain, logits)
    assert torch.allclose(found, expected, atol=1e-6)


def test_packing_keeps_where_each_sample_begins() -> None:
    batch = collate_packed(
        [
            {"input_ids": [5, 6, 7], "labels": [IGNORED, 6, 7]},
            {"input_ids": [8, 9], "labels": [IGNORED, 9]},
        ]
    )
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1]]
    assert batch["cu_seq_lens_q"].tolist() == [0, 3, 5] and batch["max_length_q"] == 3
    assert batch["logits_to_keep"].tolist() == [[True, True, False, True, False]]


def test_collating_pads_on_the_right_and_ignores_the_padding() -> None:
    batch = collate_padded(
        [{"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}, {"input_ids": [8], "labels": [8]}]
    )
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[-100, 6, 7], [8, -100, -100]]
