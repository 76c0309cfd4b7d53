"""A model whose layers are on several devices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from accelerate import dispatch_model
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM
from transformers.masking_utils import AttentionMaskInterface

from instructdiff_ray.engine import batch as batch_module
from instructdiff_ray.engine import lm_head, metrics, packing
from instructdiff_ray.engine.batch import Batch
from instructdiff_ray.engine.lm_head import without_outer_hook
from instructdiff_ray.engine.metrics import SampleScorer

TINY: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
MAP = {
    "model.embed_tokens": "cuda:0",
    "model.rotary_emb": "cuda:0",
    "model.layers.0": "cuda:0",
    "model.layers.1": "cuda:1",
    "model.norm": "cuda:1",
    "lm_head": "cuda:1",
}
MODELS = {
    "untied": lambda: Qwen2ForCausalLM(Qwen2Config(**TINY, tie_word_embeddings=False)),
    "tied": lambda: Qwen2ForCausalLM(Qwen2Config(**TINY, tie_word_embeddings=True)),
}
LENGTHS = (40, 17, 9, 2)


def samples() -> tuple[list[np.ndarray], list[np.ndarray]]:
    ids = [np.arange(length) * 31 % 97 for length in LENGTHS]
    return ids, [np.arange(length) > length // 3 for length in LENGTHS]


@pytest.mark.parametrize("name", MODELS)
def test_its_scores_are_those_of_the_model_on_one(name: str) -> None:
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    batch = Batch.of(*samples(), torch.device("cpu"))
    expected = SampleScorer(model).score(batch)
    state = model.state_dict()
    spread = MODELS[name]().eval()
    spread.load_state_dict(state)
    # Processors are one device. That all is where it must be, the test below shows.
    dispatch_model(spread, dict.fromkeys(MAP, "cpu"), force_hooks=True)
    without_outer_hook(spread)
    scorer = SampleScorer(spread)
    assert scorer.packed and scorer.head
    assert all(hasattr(layer, "_hf_hook") for layer in spread.model.layers)
    assert torch.allclose(scorer.score(batch), expected, atol=1e-5)


def on_two_gpus(model: PreTrainedModel, where: dict[str, str]) -> PreTrainedModel:
    """The model, its weights without numbers on two GPUs that are not there; hooks as loaded."""
    for name, module in model.named_modules():
        for key, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is None:
                continue
            device = next(
                device for part, device in where.items() if f"{name}.{key}".startswith(part)
            )
            empty = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
            if key in module._parameters:
                module._parameters[key] = nn.Parameter(empty, False)
            else:
                module._buffers[key] = empty
    dispatch_model(model, where)
    without_outer_hook(model)
    return model.eval()


def indexed(tensor: torch.Tensor, key: Any) -> torch.Tensor:
    """tensor[key] by operations that torch knows without the driver of the tensor's device."""
    keys = list(key) if isinstance(key, tuple) else [key]
    if any(part is Ellipsis for part in keys):
        place = next(n for n, part in enumerate(keys) if part is Ellipsis)
        taken = sum(part is not None for part in keys) - 1
        keys[place : place + 1] = [slice(None)] * (tensor.dim() - taken)
    dimension = 0
    for part in keys:
        if part is None:
            tensor = tensor.unsqueeze(dimension)
        elif isinstance(part, int):
            tensor = tensor.select(dimension, part)
            continue
        elif isinstance(part, slice):
            if part != slice(None):
                tensor = torch.ops.aten.slice(tensor, dimension, part.start, part.stop)
        else:
            tensor = tensor.index_select(dimension, part)
        dimension += 1
    return tensor


@pytest.mark.parametrize("packs", [True, False])
@pytest.mark.parametrize("head", ["cuda:0", "cuda:1"])  # on the first where it is the embeddings'
def test_every_tensor_is_brought_to_the_device_where_it_is_used(
    packs: bool, head: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    for module in (lm_head, packing):
        monkeypatch.setattr(module, "nearly_equal", lambda found, expected, _: True)
    if not packs:
        monkeypatch.setattr(metrics, "pack", lambda model: False)
    monkeypatch.setattr(
        batch_module,
        "_send",
        lambda array, device: mode.from_tensor(torch.from_numpy(array)).to(device),
    )
    monkeypatch.setattr(metrics, "fused", lambda: metrics.add_up)
    # Without numbers transformers can't see that a mask is not needed.
    monkeypatch.setitem(AttentionMaskInterface._global_mapping, "sdpa", lambda **_: None)
    # What Python's side of torch does with the driver of the device, which is not there.
    monkeypatch.setattr(FakeTensor, "__getitem__", indexed)
    monkeypatch.setattr(FakeTensor, "contiguous", lambda tensor: tensor.clone())
    monkeypatch.setattr(FakeTensor, "float", lambda tensor: tensor.type(torch.float32))
    monkeypatch.setattr(
        FakeTensor, "__setitem__", lambda tensor, rows, values: tensor.index_copy_(0, rows, values)
    )
    with torch.device("meta"):
        config = Qwen2Config(**TINY, tie_word_embeddings=False)
        model = Qwen2ForCausalLM._from_config(config, dtype=torch.bfloat16)
    with mode:
        scorer = SampleScorer(on_two_gpus(model, {**MAP, "lm_head": head}))
        assert scorer.packed == packs and scorer.head
        scores = scorer.score(Batch.of(*samples(), torch.device("cuda:0")))
    assert scores.shape == (2, len(LENGTHS))
    assert scores.device == torch.device("cuda:0")
