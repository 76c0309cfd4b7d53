"""The configuration, typed and checked. Hydra fills it in `commands/`; all else knows only this."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

from instructdiff_ray.config.cluster import ClusterConfig
from instructdiff_ray.config.data import DataConfig, ModelConfig, TemplateConfig
from instructdiff_ray.config.output import OutputConfig
from instructdiff_ray.config.plan import PlanConfig
from instructdiff_ray.config.selection import GUARDS, BaselineConfig, SelectConfig
from instructdiff_ray.config.training import (
    FULL,
    RANDOM,
    CalibrateConfig,
    EvaluateConfig,
    FinetuneConfig,
)
from instructdiff_ray.errors import UserError, require

# What can't differ between the domains of one pool.
ALL_DOMAINS_CALIBRATE = ("max_length", "per_domain", "repeats")
ALL_DOMAINS_SELECT = ("filter",)


@dataclass
class Config:
    """Everything one run needs.

    domain: name of the domain whose hyper-parameters are in force; labels rows without their own.
    domains: by name, what a domain of a mixed pool has of its own: `calibrate` and `select`, each
        with some of their settings: +domains.math.select.ratio=0.2.
    strategy: what ranks the pool: `instructdiff`, or a baseline (docs/strategies.md).
    rounds: K of Algorithm 1; each calibrates on the selection of the round before.
    storage: root of all artifacts, shared by runs; local path or URI.
    run_dir: where this run's outputs go; None makes `storage/runs/<time>`.
    seed: of the warm-up subset, and of training.
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
    plan: PlanConfig = field(default_factory=PlanConfig)
    output: OutputConfig = field(default_factory=OutputConfig)
    rounds: int = 1
    storage: str = "outputs"
    run_dir: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        require(
            not (self.calibrate.optimizer != "adamw" and self.cluster.train.fsdp),
            f"cluster.train.fsdp=true and calibrate.optimizer={self.calibrate.optimizer} don't go"
            " together; leave out one",
        )
        require(self.rounds >= 1, f"rounds={self.rounds} must be ≥ 1")
        require(bool(self.domain.strip()), "domain must be a name")
        workers, batch = self.cluster.train.workers, self.calibrate.global_batch_size
        require(
            batch % workers == 0,
            f"calibrate.global_batch_size={batch} can't be split over"
            f" cluster.train.workers={workers}; make it a multiple",
        )
        for name, settings in self.domains.items():
            self._check_domain(name, settings)

    def arms(self) -> list[str]:
        """What `instructdiff evaluate` compares: strategies, and maybe FULL."""
        return list(dict.fromkeys(self.evaluate.arms or [self.strategy, RANDOM, FULL]))

    def select_of(self, domain: str) -> SelectConfig:
        """How this domain is filtered and ranked."""
        return replace(self.select, **self.domains.get(domain, {}).get("select", {}))

    def domains_with(self, part: str, name: str) -> set[str]:
        """Domains that have a value of their own for this setting."""
        return {
            domain for domain, settings in self.domains.items() if name in settings.get(part, {})
        }

    def excludes_warmup(self) -> bool:
        """Whether any domain selects nothing of the warm-up subset."""
        return any(config.exclude_warmup for config in self._all_select())

    def guards(self) -> tuple[str, ...]:
        """The guards of all domains, in the order of GUARDS."""
        wanted = {name for config in self._all_select() for name in config.guards}
        return tuple(name for name in GUARDS if name in wanted)

    def _all_select(self) -> list[SelectConfig]:
        return [self.select, *(self.select_of(name) for name in self.domains)]

    def calibrate_of(self, domain: str) -> CalibrateConfig:
        """How this domain's own model is calibrated, and the share of the warm-up subset in it."""
        return replace(self.calibrate, **self.domains.get(domain, {}).get("calibrate", {}))

    def _check_domain(self, name: str, settings: Any) -> None:
        where = f"domains.{name}"
        require(
            isinstance(settings, dict) and set(settings) <= {"calibrate", "select"},
            f"{where} may hold `calibrate` and `select`",
        )
        for part, common in (("calibrate", ALL_DOMAINS_CALIBRATE), ("select", ALL_DOMAINS_SELECT)):
            require(isinstance(settings.get(part, {}), dict), f"{where}.{part} must hold settings")
            known = {f.name for f in fields(getattr(self, part))}
            for key in settings.get(part, {}):
                require(key in known, f"{where}.{part}.{key} is not a setting")
                require(key not in common, f"{part}.{key} is one for all domains, set it there")
        try:
            select, calibrate = self.select_of(name), self.calibrate_of(name)
            replace(self, select=select, calibrate=calibrate, domains={})
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
