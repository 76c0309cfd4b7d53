"""LoRA: what is trained of a model whose own weights stay as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from instructdiff_ray.config.training import CalibrateConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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
