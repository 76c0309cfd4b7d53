"""Samples one behind the other, without padding: each token attends within its own sample only.

The attention is registered with transformers under a name, so a model's own code calls it; on CUDA
it is torch's variable-length flash attention, on a processor torch's own attention, sample by
sample. A model packs if it gives the same hidden states so as it gives for samples alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from instructdiff_ray.engine.batch import Batch
from instructdiff_ray.engine.device import UNLIKE, model_unlike
from instructdiff_ray.engine.lm_head import nearly_equal

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PACKED = "packed"
CHECK_LENGTHS = (16, 11, 1, 23)
# Attention that is causal and knows of no border but a window: what `attend` does.
LAYER_TYPES = {"full_attention", "sliding_attention"}
# What some models hand to their attention besides, each under its own name.
UNKNOWN = ("softcap", "s_aux", "sinks", "position_bias", "indices", "block_indices")
# Of the norm of a token's hidden state.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.1}


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """What transformers calls in every layer. query, key, value: [1, heads, tokens, width].

    cu_seq_lens_q: [samples + 1] int32, where each sample starts, and the end; none: one sample.
    Gives [1, tokens, heads, width]. Raises ValueError where more than this is asked for. Can be
    differentiated.
    """
    if unknown := [name for name in UNKNOWN if others.get(name) is not None]:
        raise ValueError(f"packed attention knows no {', '.join(unknown)}")
    if sliding_window is None and _has_window(module):
        raise ValueError("this model tells its window to masks only, and there are none here")
    if len(query) != 1 or attention_mask is not None:
        raise ValueError("packed attention takes one row and no mask")
    if others.get("dropout"):
        raise ValueError("packed attention drops nothing")
    # A token sees itself and those before it.
    window = -1 if sliding_window is None else sliding_window - 1
    if query.is_cuda:
        if torch.is_autocast_enabled(query.device.type):  # which doesn't know this attention
            dtype = torch.get_autocast_dtype(query.device.type)
            query, key, value = (x.to(dtype) for x in (query, key, value))
        length = query.shape[2]
        if cu_seq_lens_q is None or max_length_q is None:
            cu_seq_lens_q = torch.tensor([0, length], dtype=torch.int32, device=query.device)
            max_length_q = length
        q, k, v = (x[0].transpose(0, 1).contiguous() for x in (query, key, value))
        attended: Any = varlen_attn(
            *(q, k, v, cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q),
            scale=scaling,
            window_size=(window, 0),
            enable_gqa=q.shape[1] != k.shape[1],
        )
        return attended[None], None
    sizes = [query.shape[2]] if cu_seq_lens_q is None else cu_seq_lens_q.diff().tolist()
    queries, keys, values = (x.split(sizes, dim=2) for x in (query, key, value))
    outputs = [
        _attend_alone(q, k, v, scaling, window)
        for q, k, v in zip(queries, keys, values, strict=True)
    ]
    return torch.cat(outputs, dim=2).transpose(1, 2), None


def _has_window(module: nn.Module) -> bool:
    """Whether this layer's attention ends at a window, by the model's configuration."""
    config: Any = getattr(module, "config", None)
    types = getattr(config, "layer_types", None)
    return bool(getattr(config, "sliding_window", None)) and (
        types is None or types[module.layer_idx] == "sliding_attention"
    )


def _attend_alone(
    query: Tensor, key: Tensor, value: Tensor, scaling: float | None, window: int
) -> Tensor:
    length = query.shape[2]
    mask = None
    if 0 <= window < length - 1:
        mask = torch.ones(length, length, dtype=torch.bool).tril().triu(-window)
    return scaled_dot_product_attention(
        *(query, key, value),
        attn_mask=mask,
        is_causal=mask is None,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )


AttentionInterface.register(PACKED, attend)


def pack(model: PreTrainedModel) -> bool:
    """Make the model's body take packed samples, if it can; it is left as it was if it can't."""
    config = model.config.get_text_config()
    before = config._attn_implementation
    if before == PACKED:
        return True
    if not set(getattr(config, "layer_types", None) or ()) <= LAYER_TYPES:
        return False
    vocabulary = int(model.get_input_embeddings().num_embeddings)  # type: ignore[arg-type]
    ids = check_samples(vocabulary)
    batch = Batch.of(ids, [np.ones(len(sample), bool) for sample in ids], model.device)
    with torch.inference_mode():
        tokens, where = batch.padded()
        expected = model.base_model(input_ids=tokens, use_cache=False).last_hidden_state
        expected = expected.flatten(0, 1)[where.to(expected.device)].float()
        try:
            model.set_attn_implementation(PACKED)
            if config._attn_implementation != PACKED:  # it has an attention of its own
                return False
            same = nearly_equal(packed_hidden(model, batch), expected, TOLERANCE[model.dtype])
        except UNLIKE as error:
            if not model_unlike(error):
                raise
            same = False
    if not same:
        model.set_attn_implementation(before)
    return same


def check_samples(vocabulary: int) -> list[np.ndarray]:
    """Token ids of the samples that packing is tried on. Any do; a stride spreads them over the
    vocabulary."""
    ids = np.arange(sum(CHECK_LENGTHS)) * 7919 % vocabulary
    return np.split(ids, np.cumsum(CHECK_LENGTHS)[:-1])


def packed_hidden(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Last hidden states, [tokens, width], of a model that packs."""
    body = model.base_model(
        input_ids=batch.tokens[None],
        position_ids=batch.positions[None],
        cu_seq_lens_q=batch.starts,
        max_length_q=max(batch.lengths),
        use_cache=False,
    )
    hidden: Tensor = body.last_hidden_state[0]
    return hidden
