"""What is trained, and how trained models are judged: `calibrate`, `finetune` and `evaluate`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from instructdiff_ray.errors import require

# Arms of an evaluation that its code knows by name: a strategy, and all samples.
RANDOM, FULL = "random", "full"
OPTIMIZERS = ("adamw", "adafactor")


@dataclass
class CalibrateConfig:
    """Fine-tuning that turns the base model into the calibrated one (Table 9 of the paper).

    ratio: α, share of the pool in the warm-up subset.
    max_samples: of a calibration at most, whatever the ratio says, and whatever the round before
        selected; drawn at random.
    epochs: passes over the samples.
    learning_rate: the highest, from which it falls by a cosine.
    global_batch_size: samples in a step, over all workers.
    max_length: tokens of a sample at most, in training and in scoring.
    weight_decay: of AdamW.
    max_grad_norm: at which gradients are clipped.
    lora_rank: None trains all parameters (the paper); else adapters of this rank in all linear
        layers, the head aside, and base and calibrated model share one copy of the base weights.
    per_domain: one calibrated model for each domain of the pool, from its own share of the warm-up
        subset, instead of one for all.
    warmup_steps_ratio: share of the steps in which the learning rate rises.
    gradient_checkpointing: recompute activations to save memory.
    optimizer: adamw (the paper), or adafactor, which keeps next to nothing for a parameter.
    repeats: calibrations, each on another warm-up subset; ranking is by the mean change. With more
        than one a run says how stable its selection is.
    """

    ratio: float = 0.1
    max_samples: int | None = None
    epochs: int = 3
    learning_rate: float = 2e-5
    global_batch_size: int = 64
    max_length: int = 2048
    weight_decay: float = 0.01
    warmup_steps_ratio: float = 0.05
    max_grad_norm: float = 1.0
    gradient_checkpointing: bool = False
    optimizer: str = "adamw"
    lora_rank: int | None = None
    per_domain: bool = False
    repeats: int = 1

    def __post_init__(self) -> None:
        require(0 < self.ratio <= 1, f"calibrate.ratio={self.ratio} must be in (0, 1]")
        for name in ("epochs", "global_batch_size", "repeats"):
            require(getattr(self, name) >= 1, f"calibrate.{name}={getattr(self, name)} must be ≥ 1")
        require(
            self.max_samples is None or self.max_samples >= 1,
            f"calibrate.max_samples={self.max_samples} must be 1 or more",
        )
        require(
            self.lora_rank is None or self.lora_rank >= 1,
            f"calibrate.lora_rank={self.lora_rank} must be 1 or more",
        )
        require(
            self.optimizer in OPTIMIZERS,
            f"calibrate.optimizer={self.optimizer} is not known; use {' or '.join(OPTIMIZERS)}",
        )
        require(self.max_length >= 2, f"calibrate.max_length={self.max_length} must be ≥ 2")
        require(
            0 < self.learning_rate < math.inf,
            f"calibrate.learning_rate={self.learning_rate} must be above 0",
        )
        require(
            0 <= self.weight_decay < math.inf,
            f"calibrate.weight_decay={self.weight_decay} must be 0 or more",
        )
        require(
            0 <= self.warmup_steps_ratio < 1,
            f"calibrate.warmup_steps_ratio={self.warmup_steps_ratio} must be in [0, 1)",
        )
        require(
            0 < self.max_grad_norm < math.inf,
            f"calibrate.max_grad_norm={self.max_grad_norm} must be above 0",
        )


@dataclass
class FinetuneConfig:
    """What `instructdiff finetune` trains, with the settings of `calibrate`.

    model: a Hugging Face folder or hub name; None: model.base. A larger model of the family that
        selected is what the paper calls weak to strong.
    selection: folder of the run whose selection is taken; None: what the configuration selects.
    """

    model: str | None = None
    selection: str | None = None


@dataclass
class EvaluateConfig:
    """How `instructdiff evaluate` judges selections.

    arms: what is compared: strategies, or `full` for all samples; the first strategy says how much
        the others are trained on. Without any: what is configured, `random` and `full`.
    holdout: share of the pool that is neither selected from nor trained on.
    seeds: trainings of each arm, from `seed` on; each also draws its own warm-up subset.
    tasks: benchmark tasks that are run on each model: names that lm-eval knows, or YAML files of
        tasks for it.
    """

    arms: list[str] = field(default_factory=list)
    holdout: float = 0.1
    seeds: int = 3
    tasks: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        require(
            not self.arms or set(self.arms) != {FULL},
            "evaluate.arms names no strategy; add one, such as instructdiff",
        )
        require(0 < self.holdout < 1, f"evaluate.holdout={self.holdout} must be in (0, 1)")
        require(self.seeds >= 1, f"evaluate.seeds={self.seeds} must be 1 or more")
