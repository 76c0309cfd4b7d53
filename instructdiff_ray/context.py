"""What one command works with: its configuration, checked, and all that the configuration names."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from instructdiff_ray.config.data import DataConfig
from instructdiff_ray.config.precision import choose_precision, processor_instructions
from instructdiff_ray.config.run import Config
from instructdiff_ray.errors import UserError, require
from instructdiff_ray.models.encoding import EncoderSpec
from instructdiff_ray.models.find import find_model
from instructdiff_ray.models.model import Model
from instructdiff_ray.pool.benchmarks import load_benchmarks, pin_benchmarks
from instructdiff_ray.pool.cleaning import check_clean
from instructdiff_ray.pool.files import check_format, source_files
from instructdiff_ray.pool.hub_data import is_hub, pin_paths
from instructdiff_ray.pool.sampling import repeat_seed
from instructdiff_ray.pool.source import SourceFile
from instructdiff_ray.progress import Progress
from instructdiff_ray.scoring.stats import ScoringStats
from instructdiff_ray.selection.requirements import (
    BaselineModels,
    arm_strategies,
    check_arms,
    check_strategy,
    find_baseline_models,
    of_strategy,
)
from instructdiff_ray.selection.strategies import STRATEGIES, Strategy
from instructdiff_ray.storage.artifacts import Storage
from instructdiff_ray.storage.filesystem import Folder, absolute, join
from instructdiff_ray.training.trackers import check_trackers


@dataclass(frozen=True)
class RunContext:
    """What all stages of one command share; `prepare` makes it.

    files: the source files, as they were listed when the command began.
    base: the model that is calibrated; target: the model that is trained on the selection.
    models_by_strategy: the models of baselines, of the configured strategy and of all arms.
    folder: takes the outputs.
    progress, stats: what the command has cost so far; stages add to them.
    """

    config: Config
    files: Sequence[SourceFile]
    base: Model
    target: Model
    models_by_strategy: Mapping[str, BaselineModels]
    storage: Storage
    folder: Folder
    progress: Progress
    stats: ScoringStats = field(default_factory=ScoringStats)

    @property
    def strategy(self) -> Strategy:
        return STRATEGIES[self.config.strategy]

    @property
    def baseline_models(self) -> BaselineModels:
        return self.models_by_strategy[self.config.strategy]

    def with_seed(self, seed: int) -> RunContext:
        """The same with another seed: of the warm-up subset, and of training."""
        return replace(self, config=replace(self.config, seed=seed))

    def with_strategy(self, name: str) -> RunContext:
        """The same with another strategy, one of the arms of the evaluation."""
        return replace(self, config=of_strategy(self.config, name))

    def repeats(self) -> list[RunContext]:
        """The same for each of `calibrate.repeats`, with the seed of that repeat."""
        seeds = (repeat_seed(self.config.seed, r) for r in range(self.config.calibrate.repeats))
        return [self.with_seed(seed) for seed in seeds]


def prepare(config: Config, progress: Progress) -> RunContext:
    """Check all that can be known before Ray starts (paths, formats, models), and find it.

    Raises UserError.
    """
    check_settings(config)
    config = _with_precision(config, progress)
    storage = Storage(absolute(config.storage))
    folder = Folder(absolute(run_folder(config, run_name())))
    config = replace(
        config,
        data=pin_paths(config.data, progress.say),
        clean=pin_benchmarks(config.clean, progress.say),
    )
    load_benchmarks(config.clean)
    files = list_data(config.data)
    base = find_model(config.model)
    target = _find_target(config, base, progress)
    models = {
        name: find_baseline_models(of_strategy(config, name), base)
        for name in dict.fromkeys([config.strategy, *arm_strategies(config)])
    }
    _check_encoding(config, base, progress)
    return RunContext(config, files, base, target, models, storage, folder, progress)


def check_settings(config: Config) -> None:
    """Raises UserError for what the configuration alone shows to be wrong, and can't check itself
    because it knows neither strategies nor readers nor trackers."""
    check_strategy(config)
    check_arms(config)
    check_format(config.data.format)
    check_clean(config.clean)
    check_trackers(config.cluster.train.report_to)
    for path in (config.storage, config.run_dir or ""):
        absolute(path)
        require(
            not is_hub(path),
            f"{path}: nothing is written to the Hub; name a folder, or an object store, for storage"
            " and run_dir",
        )


def run_folder(config: Config, name: str) -> str:
    """The folder of a run; name: of one that has no `run_dir`."""
    return config.run_dir or join(config.storage, "runs", name)


def run_name() -> str:
    """A name for a run's folder: when it began, and what tells it from another of that second."""
    return f"{datetime.datetime.now():%Y-%m-%d_%H-%M-%S}-{uuid.uuid4().hex[:4]}"


def list_data(data: DataConfig) -> list[SourceFile]:
    """The files that `data.path` names, datasets of the Hub pinned. UserError where there is none,
    or no row in them."""
    if not data.paths:
        raise UserError("data.path is not set; name your instruction data, or data.path=demo")
    files = source_files(data)
    if not any(file.size for file in files):
        raise UserError(f"data.path={', '.join(data.paths)} holds no row")
    return files


def _with_precision(config: Config, progress: Progress) -> Config:
    """The configuration with fp32 or bf16 in place of `auto`; says which, and why."""
    if config.cluster.precision != "auto":
        return config
    precision, reason = choose_precision(config.cluster, processor_instructions())
    progress.say(f"cluster.precision=auto is {precision}: {reason}")
    return replace(config, cluster=replace(config.cluster, precision=precision))


def _find_target(config: Config, base: Model, progress: Progress) -> Model:
    """The model that is to be trained on the selection; says so where the selection is unlikely to
    suit it."""
    if config.finetune.model is None:
        return base
    named = replace(config.model, base=config.finetune.model, revision=None)
    target = find_model(named, "finetune.model")
    family, other = base.family(), target.family()
    if family != other or base.vocabulary() != target.vocabulary():
        progress.say(
            f"warning: finetune.model ({other}) is of another family than model.base ({family})"
            " or has another tokenizer; in the paper, selections of two Qwen2.5 models overlap"
            " by 0.64 and those across families by 0.15 (Tables 6-8): select with a small model"
            " of the family that you train"
        )
    return target


def _check_encoding(config: Config, base: Model, progress: Progress) -> None:
    encoding = EncoderSpec.of(config, base)
    encoding.check()
    if encoding.max_length < config.calibrate.max_length:
        progress.say(
            f"calibrate.max_length={config.calibrate.max_length} is more than the model's"
            f" {encoding.max_length} positions; {encoding.max_length} is taken"
        )
