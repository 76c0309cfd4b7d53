"""The configuration, typed and checked. Hydra fills it in `jobs/`; the library knows only this."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from instructdiff_ray.errors import UserError


def _require(ok: bool, line: str) -> None:
    # A NaN fails every comparison, so it can't slip through a range check.
    if not ok:
        raise UserError(line)


@dataclass
class DataConfig:
    """Where the instruction pool comes from.

    path: file, folder or glob, or a list of them; local or a URI (s3://, gs://, abfs://).
    limit: rows read at most, in file order; None reads all.
    format: json | jsonl | parquet | csv; None goes by the file's name.
    columns: the user's names for `instruction`, `input`, `response`, `messages`; None recognises
        the usual schemas row by row.
    domain_column: column that names each row's domain; None gives all rows the configured domain.
    keep_duplicates: keep rows whose instruction and response were already read.
    over_long: reject | truncate what is longer than `calibrate.max_length` tokens.
    max_reject_ratio: share of the rows read that may be rejected, duplicates aside, before the run
        stops.
    """

    path: Any = None
    limit: int | None = None
    format: str | None = None
    columns: dict[str, str] | None = None
    domain_column: str | None = None
    keep_duplicates: bool = False
    over_long: str = "reject"
    max_reject_ratio: float = 0.5

    def __post_init__(self) -> None:
        known = ("json", "jsonl", "parquet", "csv")
        _require(
            self.format is None or self.format in known,
            f"data.format={self.format} is not known; use one of {', '.join(known)}",
        )
        _require(
            self.over_long in ("reject", "truncate"),
            f"data.over_long={self.over_long} is not known; use reject or truncate",
        )
        _require(self.limit is None or self.limit > 0, f"data.limit={self.limit} must be 1 or more")
        _require(
            0 <= self.max_reject_ratio <= 1,
            f"data.max_reject_ratio={self.max_reject_ratio} must be in [0, 1]",
        )
        if self.columns is not None:
            names = ("instruction", "input", "response", "messages")
            for name in self.columns:
                _require(
                    name in names, f"data.columns.{name} is not known; name {', '.join(names)}"
                )
            _require(
                set(self.columns) == {"messages"}
                or {"instruction", "response"} <= set(self.columns) <= set(names[:3]),
                "data.columns must name `instruction` and `response`, or `messages` alone",
            )

    @property
    def paths(self) -> list[str]:
        """`path` as a list."""
        paths = self.path if isinstance(self.path, (list, tuple)) else [self.path]
        return [str(path) for path in paths if path is not None]


@dataclass
class ModelConfig:
    """The model that is to be trained on the selection.

    base: a Hugging Face folder (local or URI) or a hub name; None in the demo, which makes its own.
    revision: branch, tag or commit of a hub model.
    trust_remote_code: run Python code that comes with the model.
    """

    base: str | None = None
    revision: str | None = None
    trust_remote_code: bool = False


@dataclass(unsafe_hash=True)
class TemplateConfig:
    """How a sample becomes text; training and scoring see the same.

    prompt: what stands before the response, with `{instruction}`; used without an input.
    prompt_with_input: the same with `{instruction}` and `{input}`.
    chat: use the tokenizer's own chat template instead of the two prompts.
    """

    name: str = "direct"
    prompt: str = "{instruction}\n"
    prompt_with_input: str = "{instruction}\n{input}\n"
    chat: bool = False

    def __post_init__(self) -> None:
        if self.chat:
            return
        for name, fields in (
            ("prompt", {"instruction"}),
            ("prompt_with_input", {"instruction", "input"}),
        ):
            text = getattr(self, name)
            # Marks without braces: a doubled `{{instruction}}` is text, not the field.
            marks = {field: f"\0{field}\0" for field in sorted(fields)}
            try:
                rendered = text.format(**marks)
            except (LookupError, ValueError, AttributeError, TypeError) as error:
                raise UserError(
                    f"template.{name} is no valid format string ({error}); double every brace that"
                    " is text"
                ) from None
            for mark_name, mark in marks.items():
                _require(mark in rendered, f"template.{name} must contain {{{mark_name}}}")


@dataclass
class CalibrateConfig:
    """Fine-tuning that turns the base model into the calibrated one (Table 9 of the paper).

    ratio: α, share of the pool in the warm-up subset.
    max_length: tokens of a sample at most, in training and in scoring.
    warmup_steps_ratio: share of the steps in which the learning rate rises.
    gradient_checkpointing: recompute activations to save memory.
    """

    ratio: float = 0.1
    epochs: int = 3
    learning_rate: float = 2e-5
    global_batch_size: int = 64
    max_length: int = 2048
    weight_decay: float = 0.01
    warmup_steps_ratio: float = 0.05
    max_grad_norm: float = 1.0
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        _require(0 < self.ratio <= 1, f"calibrate.ratio={self.ratio} must be in (0, 1]")
        for name in ("epochs", "global_batch_size"):
            _require(
                getattr(self, name) >= 1, f"calibrate.{name}={getattr(self, name)} must be ≥ 1"
            )
        _require(self.max_length >= 2, f"calibrate.max_length={self.max_length} must be ≥ 2")
        _require(
            0 < self.learning_rate < math.inf,
            f"calibrate.learning_rate={self.learning_rate} must be above 0",
        )
        _require(
            0 <= self.weight_decay < math.inf,
            f"calibrate.weight_decay={self.weight_decay} must be 0 or more",
        )
        _require(
            0 <= self.warmup_steps_ratio < 1,
            f"calibrate.warmup_steps_ratio={self.warmup_steps_ratio} must be in [0, 1)",
        )
        _require(
            0 < self.max_grad_norm < math.inf,
            f"calibrate.max_grad_norm={self.max_grad_norm} must be above 0",
        )


@dataclass
class SelectConfig:
    """How the pool is filtered and ranked.

    ratio: β, share of the pool that is selected.
    reject_ratio: γ, share of the pool that is cut at each end of ΔNLL.
    """

    ratio: float = 0.1
    reject_ratio: float = 0.1

    def __post_init__(self) -> None:
        _require(0 < self.ratio <= 1, f"select.ratio={self.ratio} must be in (0, 1]")
        _require(
            0 <= self.reject_ratio < 0.5,
            f"select.reject_ratio={self.reject_ratio} must be in [0, 0.5)",
        )
        room = 1 - 2 * self.reject_ratio
        _require(
            # 1 − 2γ is rounded: γ = 0.45 with β = 0.1 is exact on paper and must pass.
            self.ratio <= room or math.isclose(self.ratio, room),
            f"select.ratio={self.ratio} is more than select.reject_ratio={self.reject_ratio} leaves"
            f" ({room:g} of the pool); lower one of them",
        )


@dataclass
class TrainResources:
    """Ray Train workers.

    workers: processes, each with `gpus_per_worker` GPUs (0 trains on CPU).
    tokens_per_device: tokens in one forward and backward pass; the accumulation steps follow.
    fsdp: shard model and optimizer over the workers; None does when they don't fit one device.
    checkpoint_minutes: time between two checkpoints, and so what a crash may cost.
    """

    workers: int = 1
    gpus_per_worker: float = 0
    tokens_per_device: int = 8192
    fsdp: bool | None = None
    checkpoint_minutes: float = 10

    def __post_init__(self) -> None:
        _require(self.workers >= 1, f"cluster.train.workers={self.workers} must be ≥ 1")
        _require(
            self.gpus_per_worker in (0, 1),
            f"cluster.train.gpus_per_worker={self.gpus_per_worker} must be 0 or 1;"
            " raise cluster.train.workers for more GPUs",
        )
        _require(
            self.tokens_per_device >= 1,
            f"cluster.train.tokens_per_device={self.tokens_per_device} must be ≥ 1",
        )
        _require(
            self.checkpoint_minutes >= 0,
            f"cluster.train.checkpoint_minutes={self.checkpoint_minutes} must be 0 or more",
        )
        _require(
            not (self.fsdp and self.workers == 1),
            "cluster.train.fsdp=true needs cluster.train.workers of 2 or more",
        )


@dataclass
class ScoreResources:
    """Ray Data scoring actors: as many as the cluster holds between the two bounds.

    gpus_per_actor: a fraction lets actors share a GPU; 0 scores on CPU.
    tokens_per_batch: of one forward pass at most; None: as many as the device's memory holds and
        make it faster.
    """

    min_actors: int = 1
    max_actors: int = 1
    gpus_per_actor: float = 0
    tokens_per_batch: int | None = None

    def __post_init__(self) -> None:
        _require(
            1 <= self.min_actors <= self.max_actors,
            f"cluster.score.min_actors={self.min_actors} must be between 1 and"
            f" cluster.score.max_actors={self.max_actors}",
        )
        _require(
            0 <= self.gpus_per_actor <= 1,
            f"cluster.score.gpus_per_actor={self.gpus_per_actor} must be 0, a fraction of one GPU,"
            " or 1: an actor's models are on one GPU",
        )
        _require(
            self.tokens_per_batch is None or self.tokens_per_batch >= 1,
            f"cluster.score.tokens_per_batch={self.tokens_per_batch} must be ≥ 1",
        )


@dataclass
class ClusterConfig:
    """Where the work runs.

    address: a running Ray cluster; None joins RAY_ADDRESS, or starts Ray on this machine.
    precision: fp32 | bf16, of the models' matrix products; softmax and entropy are always fp32.
    """

    name: str = "local"
    address: str | None = None
    precision: str = "fp32"
    train: TrainResources = field(default_factory=TrainResources)
    score: ScoreResources = field(default_factory=ScoreResources)

    def __post_init__(self) -> None:
        _require(
            self.precision in ("fp32", "bf16"),
            f"cluster.precision={self.precision} is not known; use fp32 or bf16",
        )


@dataclass
class Config:
    """Everything one run needs.

    domain: name of the domain whose hyper-parameters are in force; labels rows without their own.
    rounds: K of Algorithm 1.
    storage: root of all artifacts, shared by runs; local path or URI.
    run_dir: where this run's outputs go; None makes `storage/runs/<time>`.
    """

    data: DataConfig = field(default_factory=DataConfig)
    domain: str = "general"
    model: ModelConfig = field(default_factory=ModelConfig)
    template: TemplateConfig = field(default_factory=TemplateConfig)
    calibrate: CalibrateConfig = field(default_factory=CalibrateConfig)
    select: SelectConfig = field(default_factory=SelectConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    rounds: int = 1
    storage: str = "outputs"
    run_dir: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        _require(self.rounds >= 1, f"rounds={self.rounds} must be ≥ 1")
        _require(bool(self.domain.strip()), "domain must be a name")
        workers, batch = self.cluster.train.workers, self.calibrate.global_batch_size
        _require(
            batch % workers == 0,
            f"calibrate.global_batch_size={batch} can't be split over"
            f" cluster.train.workers={workers}; make it a multiple",
        )
