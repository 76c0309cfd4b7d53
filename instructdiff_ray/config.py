"""The configuration, typed and checked. Hydra fills it in `jobs/`; the library knows only this."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from typing import Any

from instructdiff_ray.errors import UserError, require
from instructdiff_ray.resources import ClusterConfig
from instructdiff_ray.select import SelectConfig
from instructdiff_ray.strategies import STRATEGIES

# What can't differ between the domains of one pool.
ALL_DOMAINS_CALIBRATE = ("max_length", "per_domain")
ALL_DOMAINS_SELECT = ("filter",)


@dataclass
class DataConfig:
    """Where the instruction pool comes from.

    path: file, folder or glob, or a list of them; local or a URI (s3://, gs://, abfs://). For files
        that are a domain each, a mapping: domain → its path or paths.
    limit: rows read at most, in file order; None reads all.
    format: json | jsonl | parquet | csv; None goes by the file's name.
    columns: the user's names for `instruction`, `input`, `response`, `messages`; None recognises
        the usual schemas row by row.
    domain_column: column that names each row's domain; None goes by the file, where `path` names
        domains, and else gives all rows the configured domain.
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
        require(
            self.format is None or self.format in known,
            f"data.format={self.format} is not known; use one of {', '.join(known)}",
        )
        require(
            self.over_long in ("reject", "truncate"),
            f"data.over_long={self.over_long} is not known; use reject or truncate",
        )
        require(
            not (isinstance(self.path, dict) and self.domain_column is not None),
            "both data.domain_column and data.path name domains; leave out one of them",
        )
        require(self.limit is None or self.limit > 0, f"data.limit={self.limit} must be 1 or more")
        require(
            0 <= self.max_reject_ratio <= 1,
            f"data.max_reject_ratio={self.max_reject_ratio} must be in [0, 1]",
        )
        if self.columns is not None:
            names = ("instruction", "input", "response", "messages")
            for name in self.columns:
                require(name in names, f"data.columns.{name} is not known; name {', '.join(names)}")
            require(
                set(self.columns) == {"messages"}
                or {"instruction", "response"} <= set(self.columns) <= set(names[:3]),
                "data.columns must name `instruction` and `response`, or `messages` alone",
            )

    @property
    def paths(self) -> list[str]:
        """`path` as a list."""
        return [path for paths in self.paths_by_domain.values() for path in paths]

    @property
    def paths_by_domain(self) -> dict[str | None, list[str]]:
        """`path` as lists, by the domain that it names for them; None: it names none."""
        named = self.path if isinstance(self.path, dict) else {None: self.path}
        return {
            domain: [str(p) for p in (paths if isinstance(paths, (list, tuple)) else [paths]) if p]
            for domain, paths in named.items()
        }


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
    response_prompt: what stands before a response that is scored without its prompt.
    chat: use the tokenizer's own chat template instead of the two prompts.
    """

    name: str = "direct"
    prompt: str = "{instruction}\n"
    prompt_with_input: str = "{instruction}\n{input}\n"
    response_prompt: str = ""
    chat: bool = False

    def __post_init__(self) -> None:
        if self.chat:
            return
        for name, names in (
            ("prompt", {"instruction"}),
            ("prompt_with_input", {"instruction", "input"}),
        ):
            text = getattr(self, name)
            # Marks without braces: a doubled `{{instruction}}` is text, not the field.
            marks = {field: f"\0{field}\0" for field in sorted(names)}
            try:
                rendered = text.format(**marks)
            except (LookupError, ValueError, AttributeError, TypeError) as error:
                raise UserError(
                    f"template.{name} is no valid format string ({error}); double every brace that"
                    " is text"
                ) from None
            for mark_name, mark in marks.items():
                require(mark in rendered, f"template.{name} must contain {{{mark_name}}}")


@dataclass
class CalibrateConfig:
    """Fine-tuning that turns the base model into the calibrated one (Table 9 of the paper).

    ratio: α, share of the pool in the warm-up subset.
    max_length: tokens of a sample at most, in training and in scoring.
    lora_rank: None trains all parameters (the paper); else adapters of this rank in all linear
        layers, the head aside, and base and calibrated model share one copy of the base weights.
    per_domain: one calibrated model for each domain of the pool, from its own share of the warm-up
        subset, instead of one for all.
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
    lora_rank: int | None = None
    per_domain: bool = False

    def __post_init__(self) -> None:
        require(0 < self.ratio <= 1, f"calibrate.ratio={self.ratio} must be in (0, 1]")
        for name in ("epochs", "global_batch_size"):
            require(getattr(self, name) >= 1, f"calibrate.{name}={getattr(self, name)} must be ≥ 1")
        require(
            self.lora_rank is None or self.lora_rank >= 1,
            f"calibrate.lora_rank={self.lora_rank} must be 1 or more",
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
class BaselineConfig:
    """What some strategies need besides the pool and the base model.

    small_model: scores for `superfiltering`; its authors take GPT-2.
    rating_models: rate for `selectit`, weighted by their size; none: the base model alone.
    """

    small_model: str = "openai-community/gpt2"
    rating_models: list[str] = field(default_factory=list)


@dataclass
class FinetuneConfig:
    """What jobs/finetune.py trains, with the settings of `calibrate`.

    model: a Hugging Face folder or hub name; None: model.base. A larger model of the family that
        selected is what the paper calls weak to strong.
    selection: folder of the run whose selection is taken; None: what the configuration selects.
    """

    model: str | None = None
    selection: str | None = None


@dataclass
class EvaluateConfig:
    """How jobs/evaluate.py judges a selection.

    holdout: share of the pool that is neither selected from nor trained on.
    seeds: trainings of each kind, from `seed` on; each also draws its own warm-up subset.
    tasks: benchmark tasks that are run on each model: names that lm-eval knows, or YAML files of
        tasks for it.
    """

    holdout: float = 0.1
    seeds: int = 3
    tasks: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        require(0 < self.holdout < 1, f"evaluate.holdout={self.holdout} must be in (0, 1)")
        require(self.seeds >= 1, f"evaluate.seeds={self.seeds} must be 1 or more")


@dataclass
class Config:
    """Everything one run needs.

    domain: name of the domain whose hyper-parameters are in force; labels rows without their own.
    domains: by name, what a domain of a mixed pool has of its own: `calibrate` and `select`, each
        with some settings of CalibrateConfig or SelectConfig.
    strategy: what ranks the pool: `instructdiff`, or a baseline (strategies.py names them).
    rounds: K of Algorithm 1.
    storage: root of all artifacts, shared by runs; local path or URI.
    run_dir: where this run's outputs go; None makes `storage/runs/<time>`.
    """

    data: DataConfig = field(default_factory=DataConfig)
    domain: str = "general"
    domains: dict[str, Any] = field(default_factory=dict)
    model: ModelConfig = field(default_factory=ModelConfig)
    template: TemplateConfig = field(default_factory=TemplateConfig)
    calibrate: CalibrateConfig = field(default_factory=CalibrateConfig)
    select: SelectConfig = field(default_factory=SelectConfig)
    strategy: str = "instructdiff"
    baseline: BaselineConfig = field(default_factory=BaselineConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    rounds: int = 1
    storage: str = "outputs"
    run_dir: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        require(
            self.strategy in STRATEGIES,
            f"strategy={self.strategy} is not known; use one of {', '.join(STRATEGIES)}",
        )
        require(
            self.rounds == 1 or STRATEGIES[self.strategy].calibrates,
            f"rounds={self.rounds} makes no sense with strategy={self.strategy}, which calibrates"
            " no model; use rounds=1",
        )
        require(
            not (self.calibrate.lora_rank and self.cluster.train.fsdp),
            "cluster.train.fsdp=true and calibrate.lora_rank don't go together; leave out one",
        )
        require(self.rounds >= 1, f"rounds={self.rounds} must be ≥ 1")
        require(bool(self.domain.strip()), "domain must be a name")
        workers, batch = self.cluster.train.workers, self.calibrate.global_batch_size
        require(
            batch % workers == 0,
            f"calibrate.global_batch_size={batch} can't be split over"
            f" cluster.train.workers={workers}; make it a multiple",
        )
        if STRATEGIES[self.strategy].calibrates:  # or nothing is filtered
            self.select.check_room()
        for name, own in self.domains.items():
            self._check_domain(name, own)
        require(
            STRATEGIES[self.strategy].value is not None
            or not (self.excludes("warmup") or self.excludes("mismatched")),
            f"strategy={self.strategy} goes by the whole set and can exclude no sample from it;"
            " leave out select.exclude_warmup and select.exclude_mismatched",
        )

    def select_of(self, domain: str) -> SelectConfig:
        """How this domain is filtered and ranked."""
        return replace(self.select, **self.domains.get(domain, {}).get("select", {}))

    def domains_with(self, part: str, name: str) -> set[str]:
        """Domains that have a value of their own for this setting."""
        return {domain for domain, own in self.domains.items() if name in own.get(part, {})}

    def excludes(self, what: str) -> bool:
        """Whether samples of any domain are excluded for being `warmup` or `mismatched`."""
        configs = [self.select, *(self.select_of(name) for name in self.domains)]
        return any(getattr(config, f"exclude_{what}") for config in configs)

    def calibrate_of(self, domain: str) -> CalibrateConfig:
        """How this domain's own model is calibrated, and the share of the warm-up subset in it."""
        return replace(self.calibrate, **self.domains.get(domain, {}).get("calibrate", {}))

    def _check_domain(self, name: str, own: Any) -> None:
        where = f"domains.{name}"
        require(
            isinstance(own, dict) and set(own) <= {"calibrate", "select"},
            f"{where} may hold `calibrate` and `select`",
        )
        for part, common in (("calibrate", ALL_DOMAINS_CALIBRATE), ("select", ALL_DOMAINS_SELECT)):
            require(isinstance(own.get(part, {}), dict), f"{where}.{part} must hold settings")
            known = {f.name for f in fields(getattr(self, part))}
            for key in own.get(part, {}):
                require(key in known, f"{where}.{part}.{key} is not a setting")
                require(key not in common, f"{part}.{key} is one for all domains, set it there")
        try:
            own_select, own_calibrate = self.select_of(name), self.calibrate_of(name)
            replace(self, select=own_select, calibrate=own_calibrate, domains={})
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
