"""What is called on CUDA only, at the shapes of real models, with tensors that hold no numbers.

Every call's signature, types and shapes are checked by torch as on a GPU; what a kernel computes
and which sizes it takes is not.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from instructdiff_ray.engine import batch as batch_module
from instructdiff_ray.engine import lm_head, metrics, packing
from instructdiff_ray.engine.batch import Batch
from instructdiff_ray.engine.metrics import SLICE_POSITIONS, TILE_BYTES, SampleScorer
from instructdiff_ray.training.batches import collate_packed, summed_nll, use

QWEN = {"vocab_size": 151_936, "num_key_value_heads": 2}
SHAPES = {
    "Qwen2.5-0.5B": lambda: Qwen2ForCausalLM._from_config(
        Qwen2Config(
            **QWEN,
            hidden_size=896,
            intermediate_size=4864,
            num_hidden_layers=24,
            num_attention_heads=14,
            tie_word_embeddings=True,
        ),
        dtype=torch.bfloat16,
    ),
    "Qwen2.5-7B": lambda: Qwen2ForCausalLM._from_config(
        Qwen2Config(
            **{**QWEN, "vocab_size": 152_064, "num_key_value_heads": 4},
            hidden_size=3584,
            intermediate_size=18_944,
            num_hidden_layers=28,
            num_attention_heads=28,
        ),
        dtype=torch.bfloat16,
    ),
    "Llama-3-8B": lambda: LlamaForCausalLM._from_config(
        LlamaConfig(
            vocab_size=128_256,
            hidden_size=4096,
            intermediate_size=14_336,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=8,
            rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
        ),
        dtype=torch.bfloat16,
    ),
}


@pytest.fixture
def no_numbers(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTensorMode]:
    """Tensors without numbers that say they are on CUDA; checks of numbers pass."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    monkeypatch.setattr(FakeTensor, "is_cuda", property(lambda _: True))
    for module in (lm_head, packing):
        monkeypatch.setattr(module, "nearly_equal", lambda found, expected, _: True)
    monkeypatch.setattr(
        batch_module, "_send", lambda array, _: mode.from_tensor(torch.from_numpy(array))
    )
    # Compiling is not for these; sizes are those of a GPU.
    monkeypatch.setattr(metrics, "fused", lambda: metrics.add_up)
    monkeypatch.setitem(SLICE_POSITIONS, "cpu", SLICE_POSITIONS["cuda"])
    monkeypatch.setitem(TILE_BYTES, "cpu", TILE_BYTES["cuda"])
    with mode:
        yield mode


def without_numbers(model: PreTrainedModel, trained: bool = False) -> PreTrainedModel:
    """The model, its weights as tensors of the current mode; in fp32 where they are trained."""
    replaced: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                dtype = torch.float32 if trained else weight.dtype
                empty = nn.Parameter(torch.empty(weight.shape, dtype=dtype), trained)
                module._parameters[name] = replaced.setdefault(id(weight), empty)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
    return model.train(trained)


@pytest.mark.parametrize("name", SHAPES)
def test_every_call_on_cuda_takes_the_shapes_of_real_models(
    name: str, no_numbers: FakeTensorMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.device("meta"):
        model = SHAPES[name]()
    attended: list[tuple[torch.Size, torch.dtype]] = []
    tiles: list[tuple[torch.Size, torch.dtype]] = []

    def varlen(query: Tensor, *arguments: object, **options: object) -> Tensor:
        attended.append((query.shape, query.dtype))
        return varlen_attn(query, *arguments, **options)

    def add_up(logits: Tensor, *sums: Tensor) -> tuple[Tensor, ...]:
        tiles.append((logits.shape, logits.dtype))
        return plain(logits, *sums)

    varlen_attn, plain = packing.varlen_attn, metrics.add_up
    monkeypatch.setattr(packing, "varlen_attn", varlen)
    monkeypatch.setattr(metrics, "fused", lambda: add_up)
    scorer = SampleScorer(without_numbers(model))
    assert scorer.packed
    attended.clear()
    lengths = [2048, 900, 300, 77]
    ids = [np.zeros(length, np.int64) for length in lengths]
    response = [np.arange(length) >= length // 4 for length in lengths]
    scores = scorer.score(Batch.of(ids, response, torch.device("cpu")))
    assert (scores.shape, scores.dtype) == ((2, 4), torch.float64)
    config = model.config
    heads = (config.num_attention_heads, config.hidden_size // config.num_attention_heads)
    assert attended == [((sum(lengths), *heads), torch.bfloat16)] * config.num_hidden_layers
    # The head's products are fp32, and no tile is larger than it should be.
    assert {dtype for _, dtype in tiles} == {torch.float32}
    assert sum(width for (_, width), _ in tiles) == config.vocab_size
    assert max(rows * width * 4 for (rows, width), _ in tiles) <= TILE_BYTES["cuda"]


def test_a_bias_of_the_head_is_added_in_fp32(no_numbers: FakeTensorMode) -> None:
    layer = nn.Linear(64, 100, dtype=torch.bfloat16)
    rows = lm_head._Rows(layer, 40, 100)
    logits = rows(torch.empty(1, 7, 64, dtype=torch.bfloat16))
    assert (logits.shape, logits.dtype) == ((1, 7, 60), torch.float32)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_call_of_a_training_on_cuda_takes_the_shapes_of_real_models(
    name: str, checkpointing: bool, no_numbers: FakeTensorMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.device("meta"):
        model = SHAPES[name]()
    model = without_numbers(model, trained=True)
    if checkpointing:
        model.gradient_checkpointing_enable()
    attended: list[tuple[torch.Size, torch.dtype]] = []

    def varlen(query: Tensor, *arguments: object, **options: object) -> Tensor:
        attended.append((query.shape, query.dtype))
        return varlen_attn(query, *arguments, **options)

    varlen_attn = packing.varlen_attn
    monkeypatch.setattr(packing, "varlen_attn", varlen)
    use(model, collate_packed)
    lengths, responses = [2048, 900, 300, 77], 1500
    ids = torch.zeros(1, sum(lengths), dtype=torch.long)
    batch = {
        "input_ids": ids,
        "position_ids": ids,
        "cu_seq_lens_q": torch.zeros(len(lengths) + 1, dtype=torch.int32),
        "max_length_q": max(lengths),
        # Of a mask without numbers nobody knows how many it keeps.
        "logits_to_keep": torch.zeros(responses, dtype=torch.long),
    }
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(**batch, use_cache=False).logits
        assert (logits.shape, logits.dtype) == (
            (1, responses, model.config.vocab_size),
            torch.bfloat16,
        )
        loss = summed_nll(logits[0], ids[0, :responses])
    loss.backward()
    assert all(weight.grad is not None for weight in model.parameters())
    config = model.config
    heads = (config.num_attention_heads, config.hidden_size // config.num_attention_heads)
    passes = 1 + checkpointing
    assert (
        attended == [((sum(lengths), *heads), torch.bfloat16)] * config.num_hidden_layers * passes
    )
