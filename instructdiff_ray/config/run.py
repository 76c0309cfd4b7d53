"""The configuration, typed and checked. Hydra fills it in `commands/`; all else knows only this."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

from instructdiff_ray.config.clean import CleanConfig
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
ALL_DOMAINS_SELECT = ("filter", "mixture")


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
    clean: CleanConfig = field(default_factory=CleanConfig)
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
        require(
            not (self.clean.near_duplicates is not None and self.data.keep_duplicates),
            "data.keep_duplicates=true and clean.near_duplicates don't go together; leave out one",
        )
        require(self.rounds >= 1, f"rounds={self.rounds} must be ≥ 1")
        require(bool(self.storage), "storage is empty; name a folder or a URI for all artifacts")
        require(bool(self.domain.strip()), "domain must be a name")
        workers, batch = self.cluster.train.workers, self.calibrate.global_batch_size
        require(
            batch % workers == 0,
            f"calibrate.global_batch_size={batch} can't be split over"
            f" cluster.train.workers={workers}; make it a multiple",
        )
        if self.select.mixture:
            self._check_mixture()
        for name, settings in self.domains.items():
            self._check_domain(name, settings)

    def arms(self) -> list[str]:
        """What `instructdiff evaluate` compares: strategies, and maybe FULL."""
        return list(dict.fromkeys(self.evaluate.arms or [self.strategy, RANDOM, FULL]))

    def select_of(self, domain: str) -> SelectConfig:
        """How this domain is filtered and ranked. Under a mixture, which says how much of it is
        selected, it has no ratio of its own."""
        settings = dict(self.domains.get(domain, {}).get("select", {}))
        if self.select.mixture:
            settings.pop("ratio", None)
        return replace(self.select, **settings)

    def domains_with(self, part: str, name: str) -> set[str]:
        """Domains that have a value of their own for this setting."""
        return {
            domain for domain, settings in self.domains.items() if name in settings.get(part, {})
        }

    def excludes_warmup(self) -> bool:
        """Whether any domain selects nothing of the warm-up subset."""
        return any(config.exclude_warmup for config in self.all_select())

    def guards(self) -> tuple[str, ...]:
        """The guards of all domains, in the order of GUARDS."""
        wanted = {name for config in self.all_select() for name in config.guards}
        return tuple(name for name in GUARDS if name in wanted)

    def all_select(self) -> list[SelectConfig]:
        """How domains are filtered and ranked that have no settings of their own, and each that
        has."""
        return [self.select, *(self.select_of(name) for name in self.domains)]

    def calibrate_of(self, domain: str) -> CalibrateConfig:
        """How this domain's own model is calibrated, and the share of the warm-up subset in it."""
        return replace(self.calibrate, **self.domains.get(domain, {}).get("calibrate", {}))

    def _check_mixture(self) -> None:
        """What can be known before the pool is: selection/mixture.py looks at the rest."""
        for name in sorted(self.domains_with("select", "budget")):
            raise UserError(
                f"domains.{name}.select.budget: select.mixture shares out one budget; set"
                " select.budget"
            )
        if self.data.domain_column is not None or not self.data.paths:
            return
        named = [domain for domain in self.data.paths_by_domain if domain is not None]
        require(
            bool(named),
            "select.mixture needs a pool of several domains: name them by data.domain_column, or by"
            " 'data.path={domain: file, …}'",
        )
        for name in self.select.shares:
            require(
                name in named,
                f"select.mixture names {name}; the domains of data.path are {', '.join(named)}",
            )

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
