"""The verbs of the method over one configuration: what `jobs/` puts together."""

from __future__ import annotations

import datetime
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numpy as np
import yaml

from instructdiff_ray.config.run import Config
from instructdiff_ray.demo.artifacts import DEMO, demo_model, demo_pool
from instructdiff_ray.errors import UserError
from instructdiff_ray.evaluation.lm_eval import check_tasks
from instructdiff_ray.models.encoding import Rendering
from instructdiff_ray.models.model import Model, find_model
from instructdiff_ray.pool.ingest import ingest, pool_artifact, source_files
from instructdiff_ray.pool.pool import Pool, check_rejects, open_pool
from instructdiff_ray.pool.sampling import sample_warmup
from instructdiff_ray.progress import Progress
from instructdiff_ray.results.console import result_table
from instructdiff_ray.results.outputs import (
    SUMMARY,
    Outcome,
    copy_outputs,
    start_run_folder,
    write_outputs,
)
from instructdiff_ray.scoring.forwards import Forward, finished_scores, scores_keys
from instructdiff_ray.scoring.stage import Work, score
from instructdiff_ray.selection.ranking import (
    Criteria,
    Ranking,
    by_domain,
    fate_counts,
    rank,
    scored_counts,
    selected_ids,
    token_counts,
)
from instructdiff_ray.selection.requirements import find_other_models, needed_forwards
from instructdiff_ray.selection.strategies import STRATEGIES
from instructdiff_ray.selection.zip_greedy import order_by_compression
from instructdiff_ray.storage.artifacts import Finished, Storage
from instructdiff_ray.storage.filesystem import Folder, absolute
from instructdiff_ray.training.calibrate import calibrate, calibrated_model, model_artifact

# One model for all, or one for each domain.
Calibrated = Model | dict[str, Model]


def run_name() -> str:
    """A name for a run's folder: when it began, and what tells it from another of that second."""
    return f"{datetime.datetime.now():%Y-%m-%d_%H-%M-%S}-{uuid.uuid4().hex[:4]}"


def _check_data(config: Config) -> None:
    try:
        files = source_files(config.data)
    except OSError as error:  # a bucket that is missing or closed, a disk that fails
        raise UserError(f"data.path can't be read: {' '.join(str(error).split())}") from None
    if not any(file.size for file in files):
        raise UserError(f"data.path={', '.join(config.data.paths)} holds no row")


class Run:
    """One command's run: its configuration, where its artifacts are, and what it has cost so far.

    Building it checks all that can be known before Ray starts: paths, formats, the model.
    Raises UserError.
    """

    def __init__(self, config: Config, progress: Progress | None = None) -> None:
        self.progress = progress or Progress()
        self.storage = Storage(absolute(config.storage))
        self.folder = Folder(absolute(config.run_dir or f"{self.storage.root}/runs/{run_name()}"))
        if not config.data.paths:
            raise UserError("data.path is not set; name your instruction data, or data.path=demo")
        if config.data.paths != [DEMO]:
            _check_data(config)
        if tasks := config.evaluate.tasks:
            check_tasks(tuple(tasks))
        base = None if config.model.base == DEMO else find_model(config.model)
        self.config = self._with_demo(config)
        self.base = base or find_model(self.config.model)
        self.target = self._find_target()
        self.strategy = STRATEGIES[config.strategy]
        self.others = find_other_models(self.config, self.base)
        self.work = Work()
        self.warmup = 0  # samples drawn; to draw them again only to count would read every id
        self.summary: dict[str, Any] = {}
        rendering = Rendering.of(self.config, self.base)
        rendering.check()
        if rendering.max_length < self.config.calibrate.max_length:
            self.progress.say(
                f"calibrate.max_length={self.config.calibrate.max_length} is more than the model's"
                f" {rendering.max_length} positions; {rendering.max_length} is taken"
            )

    def ingest(self) -> Pool:
        pool = ingest(self.config, self.base, self.storage, self.progress)
        check_rejects(pool, self.config.data.max_reject_ratio)
        if unknown := self.config.domains.keys() - (pool.domains() if self.config.domains else {}):
            self.progress.say(
                f"no sample of this pool is of {', '.join(sorted(unknown))}: the settings in"
                " `domains` for these are not used"
            )
        return pool

    def finished_pool(self) -> Pool:
        """The pool from storage; UserError where it was not ingested yet."""
        artifact, _ = pool_artifact(self.config, self.base, self.storage)
        return open_pool(artifact.require("the pool", "run jobs/ingest.py first"), artifact.key)

    def sample_warmup(self, pool: Pool) -> list[str]:
        """The warm-up subset, sorted; a domain with an α or a model of its own is drawn apart."""
        ids = self._draw_warmup(pool)
        self.warmup = len(ids)
        return ids

    def _draw_warmup(self, pool: Pool) -> list[str]:
        config = self.config
        if not config.calibrate.per_domain and not config.domains_with("calibrate", "ratio"):
            return sample_warmup(pool.ids, config.calibrate.ratio, config.seed)
        apart = {*pool.domains()}
        if not config.calibrate.per_domain:
            apart &= config.domains_with("calibrate", "ratio")
        ids = []
        for name in sorted(apart):
            own = partial(pool.ids_of, name.__eq__)
            try:
                ids += sample_warmup(own, config.calibrate_of(name).ratio, config.seed)
            except UserError as error:
                raise UserError(f"domain {name}: {error}") from None
        if apart != {*pool.domains()}:
            rest = partial(pool.ids_of, lambda name: name not in apart)
            ids += sample_warmup(rest, config.calibrate.ratio, config.seed)
        return sorted(ids)

    def calibrate(self, pool: Pool, sample_ids: list[str]) -> Calibrated:
        """The model calibrated on these samples, or one on each domain's part of them."""

        def train(config: Config, ids: list[str]) -> Model:
            return calibrate(config, pool, self.base, ids, self.storage, self.progress)

        return self._each_calibrated(pool, sample_ids, train)

    def finished_model(self, pool: Pool, sample_ids: list[str]) -> Calibrated:
        """What was calibrated on these samples; UserError where it was not trained yet."""

        def find(config: Config, ids: list[str]) -> Model:
            artifact, _ = model_artifact(config, self.base, ids, self.storage)
            finished = artifact.require("the calibrated model", "run jobs/calibrate.py first")
            return calibrated_model(self.base, finished, artifact.key)

        return self._each_calibrated(pool, sample_ids, find)

    def _each_calibrated(
        self, pool: Pool, sample_ids: list[str], make: Callable[[Config, list[str]], Model]
    ) -> Calibrated:
        config = self.config
        if not config.calibrate.per_domain:
            return make(config, sample_ids)
        models, wanted = {}, set(sample_ids)
        for name in pool.domains():
            ids = [i for i in pool.ids_of(name.__eq__) if i in wanted]
            if not ids:
                raise UserError(f"domain {name} has no sample to calibrate its own model on")
            models[name] = make(replace(config, calibrate=config.calibrate_of(name)), ids)
        return models

    def score(self, pool: Pool, calibrated: Calibrated | None = None) -> dict[str, Finished]:
        """All scores that the strategy needs, by role; a baseline has no calibrated model."""
        forwards = self._forwards(calibrated)
        return score(self.config, pool, forwards, self.storage, self.progress, self.work)

    def finished_scores(self, pool: Pool, calibrated: Calibrated) -> dict[str, Finished]:
        """The scores from storage; UserError where they were not computed yet."""
        return finished_scores(self.config, pool, self._forwards(calibrated), self.storage)

    def select(self, pool: Pool, scores: Mapping[str, Finished]) -> Ranking:
        with self.progress.stage("select", "samples") as stage:
            ranking = rank(pool, scores, self._criteria(pool))
            unscored = Counter(ranking.rejected["reason"].to_pylist())
            check_rejects(pool, self.config.data.max_reject_ratio, unscored)
            if not fate_counts(ranking)["selected"]:
                raise UserError(
                    f"strategy={self.config.strategy} selects nothing: every candidate is excluded,"
                    " by the strategy's own rule (docs/strategies.md) or by select.exclude_warmup"
                    " or select.exclude_mismatched"
                )
            stage.add(ranking.table.num_rows)
        return ranking

    def select_finished(self, pool: Pool) -> tuple[Calibrated | None, Ranking]:
        """The selection of round `rounds` from finished scores, and the model behind it.

        A baseline computes what it lacks of the scores that it needs.
        """
        if not self.strategy.calibrates:
            return None, self.select(pool, self.score(pool))
        calibrated = self.finished_model(pool, self.training_ids(pool, self.config.rounds))
        return calibrated, self.select(pool, self.finished_scores(pool, calibrated))

    def finetune(self, pool: Pool, sample_ids: list[str]) -> Model:
        """`finetune.model`, or the base model, trained on these samples."""
        model, config = self.target, self.config
        return calibrate(config, pool, model, sample_ids, self.storage, self.progress, "finetune")

    def with_seed(self, seed: int) -> Run:
        """The same with another seed: of the warm-up subset, and of training."""
        return Run(replace(self.config, seed=seed), self.progress)

    def target_rendering(self) -> Rendering:
        """How what `finetune` trains is shown samples."""
        return Rendering.of(self.config, self.target)

    def training_ids(self, pool: Pool, round: int) -> list[str]:
        """What round `round` calibrates on, from finished artifacts: the warm-up subset, or the
        selection of the round before."""
        ids = self.sample_warmup(pool)
        for _ in range(1, round):
            calibrated = self.finished_model(pool, ids)
            ids = selected_ids(self.select(pool, self.finished_scores(pool, calibrated)))
        return ids

    def write(self, round: int, calibrated: Calibrated | None, ranking: Ranking) -> None:
        """Write the outputs of one round; the last round's also show at the top of the folder."""
        rounds = self.config.rounds
        folder = self.folder.sub(f"round-{round}") if rounds > 1 else self.folder
        with self.progress.stage("write", "rows") as stage:
            if round == 1:
                start_run_folder(self.folder)
            self.summary = self._summary(round, calibrated, ranking)
            write_outputs(folder, Outcome(ranking, self.summary, self.config_yaml()))
            stage.add(self.summary["counts"]["selected"])
            earlier = self.progress.seconds.get("write", 0.0)
            self.summary["seconds"]["write"] = earlier + stage.elapsed()
            folder.write_json(SUMMARY, self.summary)
            if round == rounds > 1:
                copy_outputs(folder, self.folder)

    def show_result(self) -> None:
        """Print what the last round selected, and where everything is."""
        self.progress.say(result_table(self.summary, self.folder))

    def config_yaml(self) -> str:
        return yaml.safe_dump(asdict(self.config), allow_unicode=True, sort_keys=False)

    def _forwards(self, calibrated: Calibrated | None) -> dict[str, Forward]:
        return needed_forwards(self.config, self.base, calibrated, self.others)

    def _criteria(self, pool: Pool) -> Criteria:
        config = self.config
        warmup = None
        if self.strategy.calibrates and config.excludes("warmup"):
            warmup = np.array(self.sample_warmup(pool), dtype="S")
        picks = None
        if self.strategy.value is None:
            picks = order_by_compression(config, pool)
        return Criteria(
            self.strategy,
            config.select_of,
            config.select.filter,
            config.seed,
            self.others.weights,
            warmup,
            picks,
        )

    def _summary(self, round: int, calibrated: Calibrated | None, ranking: Ranking) -> dict:
        pool = ranking.pool
        scored_s = self.progress.seconds.get("score", 0.0) if self.work.tokens else 0.0
        keys = scores_keys(self.config, pool, self._forwards(calibrated), self.storage)
        for domain, model in _by_domain(calibrated).items():
            name = f"calibrated_model_{domain}" if domain else "calibrated_model"
            keys[name] = model.identity.split("/")[0]
        paths = model_paths(calibrated)
        return {
            "strategy": self.config.strategy,
            "round": round,
            "rounds": self.config.rounds,
            "counts": {
                **pool.counts,
                **scored_counts(ranking),
                "warmup": self.warmup,
                **fate_counts(ranking),
                **token_counts(ranking),
            },
            "base_model": self.base.path,
            "calibrated_model": paths.get("") or paths or None,
            "scoring": {
                "tokens": self.work.tokens,
                "seconds": scored_s,
                "tokens_per_second": self.work.tokens / scored_s if scored_s else 0.0,
                "samples_scored": dict(self.work.samples),
                "shares": self.work.usage.shares(),
            },
            "seconds": dict(self.progress.seconds),
            "keys": {
                "pool": pool.key,
                **keys,
            },
            "domains": by_domain(ranking),
        }

    def _find_target(self) -> Model:
        """The model that is to be trained on the selection; says so where the selection is unlikely
        to suit it."""
        if self.config.finetune.model is None:
            return self.base
        own = replace(self.config.model, base=self.config.finetune.model, revision=None)
        target = find_model(own, "finetune.model")
        family, other = self.base.family(), target.family()
        if family != other or self.base.vocabulary() != target.vocabulary():
            self.progress.say(
                f"warning: finetune.model ({other}) is of another family than model.base ({family})"
                " or has another tokenizer; in the paper, selections of two Qwen2.5 models overlap"
                " by 0.64 and those across families by 0.15 (Tables 6-8): select with a small model"
                " of the family that you train"
            )
        return target

    def _with_demo(self, config: Config) -> Config:
        """The configuration with the demo's own pool and model in place of the word `demo`."""
        data, model = config.data, config.model
        if data.paths == [DEMO]:
            data = replace(data, path=demo_pool(self.storage, self.progress))
        if model.base == DEMO:
            model = replace(model, base=demo_model(self.storage, self.progress))
        return replace(config, data=data, model=model)


def _by_domain(calibrated: Calibrated | None) -> dict[str, Model]:
    """The calibrated models; the name is empty where one is for all domains."""
    if isinstance(calibrated, Model):
        return {"": calibrated}
    return calibrated or {}


def model_paths(calibrated: Calibrated | None) -> dict[str, str]:
    """Where the calibrated models are, by domain."""
    return {domain: model.trained for domain, model in _by_domain(calibrated).items()}
