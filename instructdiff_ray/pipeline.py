"""The method over one configuration: its stages, and Algorithm 1.

Each stage takes finished artifacts from storage. Whether it builds what is missing is the caller's
to say: with `build=False` a missing artifact is a UserError that names the job that makes it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from instructdiff_ray.config.run import Config
from instructdiff_ray.context import RunContext
from instructdiff_ray.errors import UserError
from instructdiff_ray.models.model import Model, ModelByDomain, models_by_domain
from instructdiff_ray.pool.dataset import pool_rows
from instructdiff_ray.pool.ingest import ingest, pool_artifact
from instructdiff_ray.pool.partition import id_array
from instructdiff_ray.pool.pool import Pool, open_pool
from instructdiff_ray.pool.rejects import check_rejects
from instructdiff_ray.pool.sampling import at_most
from instructdiff_ray.pool.warmup import draw_subset
from instructdiff_ray.scoring.spec import ScoreTable
from instructdiff_ray.scoring.stage import finished_scores, score
from instructdiff_ray.scoring.store import score_stores
from instructdiff_ray.scoring.token_scores import ShownSample, TokenScores, score_tokens
from instructdiff_ray.selection.batches import RankingInputs
from instructdiff_ray.selection.budgets import Budget
from instructdiff_ray.selection.certificate import rank_by_mean
from instructdiff_ray.selection.mixture import (
    budgets_of,
    check_mixture,
    mixture_notes,
    pool_sizes,
)
from instructdiff_ray.selection.ranking import (
    Ranking,
    order_within_budgets,
    rank,
    selected_ids,
)
from instructdiff_ray.selection.requirements import guards_to_show, required_scores
from instructdiff_ray.selection.select import SELECTED
from instructdiff_ray.selection.strategies import BASE, CALIBRATED
from instructdiff_ray.training.calibrate import calibrate, model_artifact
from instructdiff_ray.training.known_models import find_calibrated


@dataclass(frozen=True)
class Round:
    """One round's result.

    warmup: samples drawn for the first round; calibrated: the model of each repeat that it compares
        with the base model; none of a baseline.
    """

    number: int
    warmup: int
    calibrated: Sequence[ModelByDomain]
    ranking: Ranking


def run_rounds(context: RunContext, pool: Pool, build: bool = True) -> Iterator[Round]:
    """What the configured strategy selects, round by round; a baseline has one.

    A baseline computes what it lacks of the scores that it needs, whatever `build` says.
    """
    if context.strategy.calibrates:
        yield from algorithm_1(context, pool, context.config.rounds, build)
    else:
        yield Round(1, 0, (), select_samples(context, pool, score_pool(context, pool, ())))


def algorithm_1(
    context: RunContext, pool: Pool, rounds: int, build: bool = True
) -> Iterator[Round]:
    """InstructDiff, as Algorithm 1 of the paper has it. pool: D; rounds: K.

    With `calibrate.repeats` there are several W and π_cal, and the mean of their ΔNLL and ΔH.
    """
    samples = [draw_warmup(repeat, pool) for repeat in context.repeats()]  # W ← random α·N of D
    warmup = len(samples[0])
    for k in range(1, rounds + 1):
        calibrated = calibrate_repeats(context, pool, samples, build)  # π_cal, always from the base
        scores = score_pool(context, pool, calibrated, build)  # ΔNLL, ΔH; the base model's once
        ranking = select_samples(context, pool, scores)  # B, D′
        yield Round(k, warmup, calibrated, ranking)
        if k < rounds:
            samples = selected_samples(context, pool, ranking)


def last_round(context: RunContext, pool: Pool, build: bool = True) -> Round:
    """The round whose selection counts."""
    *_, last = run_rounds(context, pool, build)
    return last


def training_ids(context: RunContext, pool: Pool) -> list[list[str]]:
    """What each repeat of the last round calibrates on, from finished artifacts: its warm-up
    subset, or the selection of the round before."""
    repeats = context.repeats()
    if context.config.rounds == 1:
        return [draw_warmup(repeat, pool) for repeat in repeats]
    *_, previous = algorithm_1(context, pool, context.config.rounds - 1, build=False)
    return selected_samples(context, pool, previous.ranking)


def selected_samples(context: RunContext, pool: Pool, ranking: Ranking) -> list[list[str]]:
    """What each repeat of the round after this ranking calibrates on."""
    ids = selected_ids(ranking)
    return [_bounded(repeat.config, pool, ids) for repeat in context.repeats()]


def ingest_pool(context: RunContext, build: bool = True) -> Pool:
    """The pool of the source files. Raises UserError where it can't give the mixture that is
    wanted."""
    pool = _ingest_pool(context, build)
    if context.config.select.mixture:
        sizes = pool_sizes(pool)
        check_mixture(context.config, sizes)
        for note in mixture_notes(context.config, sizes):
            context.progress.say(note)
    return pool


def _ingest_pool(context: RunContext, build: bool) -> Pool:
    config, files, base = context.config, context.files, context.base
    if not build:
        artifact, _ = pool_artifact(config, files, base, context.storage)
        return open_pool(artifact.require("the pool", "run `instructdiff ingest` first"))
    pool = ingest(config, files, base, context.storage, context.progress)
    check_rejects(pool, config.data.max_reject_ratio)
    if unknown := config.domains.keys() - (pool.domains() if config.domains else {}):
        context.progress.say(
            f"no sample of this pool is of {', '.join(sorted(unknown))}: the settings in"
            " `domains` for these are not used"
        )
    return pool


def draw_warmup(context: RunContext, pool: Pool) -> list[str]:
    """The warm-up subset, sorted; a domain with an α or a model of its own is drawn apart."""
    with context.progress.watched():
        return _draw_warmup(context.config, pool)


def _draw_warmup(config: Config, pool: Pool) -> list[str]:
    apart = domains = {*pool.domains()}
    if not config.calibrate.per_domain:
        apart = domains & config.domains_with("calibrate", "ratio")
    ids = []
    for name in sorted(apart):
        try:
            ids += draw_subset(pool, {name}, config.calibrate_of(name).ratio, config.seed)
        except UserError as error:
            raise UserError(f"domain {name}: {error}") from None
    if rest := domains - apart:
        ids += draw_subset(pool, rest, config.calibrate.ratio, config.seed)
    return _bounded(config, pool, sorted(ids))


def _bounded(config: Config, pool: Pool, sample_ids: list[str]) -> list[str]:
    """Of the ids, sorted, no more than `calibrate.max_samples` for each calibration."""
    if not config.calibrate.per_domain:
        return at_most(sample_ids, config.calibrate.max_samples, config.seed)
    kept = []
    for name, ids in pool.by_domain(sample_ids).items():
        kept += at_most(ids, config.calibrate_of(name).max_samples, config.seed)
    return sorted(kept)


def calibrate_repeats(
    context: RunContext, pool: Pool, samples: Sequence[list[str]], build: bool = True
) -> list[ModelByDomain]:
    """The model of each repeat, calibrated on its samples with its seed."""
    return [
        calibrate_on(repeat, pool, sample_ids, build)
        for repeat, sample_ids in zip(context.repeats(), samples, strict=True)
    ]


def calibrate_on(
    context: RunContext, pool: Pool, sample_ids: list[str], build: bool = True
) -> ModelByDomain:
    """The model calibrated on these samples, or one on each domain's part of them."""
    models: dict[str, Model] = {
        name: _calibrate(context, config, pool, ids, build)
        for name, (config, ids) in calibrations(context, pool, sample_ids).items()
    }
    return models if context.config.calibrate.per_domain else models[""]


def calibrations(
    context: RunContext, pool: Pool, sample_ids: list[str]
) -> dict[str, tuple[Config, list[str]]]:
    """What models are calibrated on, and with which settings: by domain where each has its own;
    else the name is empty."""
    config = context.config
    if not config.calibrate.per_domain:
        return {"": (config, sample_ids)}
    parts = {}
    for name, ids in pool.by_domain(sample_ids).items():
        if not ids:
            raise UserError(f"domain {name} has no sample to calibrate its own model on")
        parts[name] = replace(config, calibrate=config.calibrate_of(name)), ids
    return parts


def _calibrate(
    context: RunContext, config: Config, pool: Pool, sample_ids: list[str], build: bool
) -> Model:
    base, storage = context.base, context.storage
    artifact, _ = model_artifact(config, base, sample_ids, storage)
    model = find_calibrated(base, artifact)
    if model and (model.known_from or not build):
        return model
    if not build:
        artifact.require("the calibrated model", "run `instructdiff calibrate` first")
    return calibrate(config, pool, base, sample_ids, storage, context.progress)


def finetune_on(context: RunContext, pool: Pool, sample_ids: list[str]) -> Model:
    """`finetune.model`, or the base model, trained on these samples."""
    return calibrate(
        context.config,
        pool,
        context.target,
        sample_ids,
        context.storage,
        context.progress,
        stage="finetune",
    )


def score_pool(
    context: RunContext, pool: Pool, calibrated: Sequence[ModelByDomain], build: bool = True
) -> dict[str, ScoreTable]:
    """All scores that the strategy needs, by name. calibrated: of each repeat; a baseline has
    none."""
    config, storage = context.config, context.storage
    specs = required_scores(config, context.base, calibrated, context.baseline_models)
    if not build:
        return finished_scores(config, pool, specs, storage)
    return score(config, pool, specs, storage, context.progress, context.stats)


def score_shown(
    context: RunContext, result: Round, samples: Sequence[ShownSample], build: bool = True
) -> dict[str, TokenScores]:
    """The token scores, by id, of samples that are to be shown; of a baseline's there are none, nor
    of a model whose weights are not here. Of several repeats the first is shown."""
    if not result.calibrated:
        return {}
    config, pool = context.config, result.ranking.pool
    specs = required_scores(config, context.base, result.calibrated, context.baseline_models)
    both = [spec for spec in specs if spec.name in (BASE, CALIBRATED)]
    stores = score_stores(both, pool, config.cluster.precision, context.storage)
    if any(model.known_from for model in models_by_domain(result.calibrated[0]).values()):
        build = False
    return score_tokens(config.cluster, stores, samples, context.storage, context.progress, build)


def select_samples(context: RunContext, pool: Pool, scores: Mapping[str, ScoreTable]) -> Ranking:
    """The pool, filtered and ranked. Raises UserError where nothing is selected."""
    config = context.config
    with context.progress.stage("select", "samples") as stage:
        ranking = rank_pool(context, pool, scores)
        unscored = Counter(ranking.rejected["reason"].to_pylist())
        check_rejects(pool, config.data.max_reject_ratio, unscored)
        if not ranking.has_fate(SELECTED).any():
            raise UserError(
                f"strategy={config.strategy} selects nothing: every candidate is excluded,"
                " by the strategy's own rule (docs/strategies.md), select.exclude_warmup or"
                " select.guard"
            )
        stage.add(ranking.table.num_rows)
    return ranking


def rank_pool(
    context: RunContext,
    pool: Pool,
    scores: Mapping[str, ScoreTable],
    budgets: Mapping[str, Budget] | None = None,
) -> Ranking:
    """The same of scores by which the pool was ranked before, without a word: under other budgets,
    say. budgets: by domain, None: as configured."""
    inputs = _ranking_inputs(context, pool, budgets)
    several = len(inputs.repeats) > 1
    return (rank_by_mean if several else rank)(pool, scores, inputs)


def _ranking_inputs(
    context: RunContext, pool: Pool, budgets: Mapping[str, Budget] | None
) -> RankingInputs:
    config, strategy = context.config, context.strategy
    warmup = None
    if strategy.calibrates and config.excludes_warmup():
        warmup = np.array(draw_warmup(context, pool), dtype="S")
    inputs = RankingInputs(
        strategy,
        config.select_of,
        config.select.filter,
        config.seed,
        context.baseline_models.weights,
        warmup,
        guards=guards_to_show(config),
        repeats=tuple(range(config.calibrate.repeats)) if strategy.calibrates else (0,),
        budgets=budgets,
    )
    if strategy.order is None:
        return inputs
    if budgets is None:
        budgets = budgets_of(config, pool_sizes(pool))
    order = order_within_budgets(_texts(pool), strategy.order, budgets)
    return replace(inputs, order=order)


def _texts(pool: Pool) -> pa.Table:
    """The whole pool's text, in the order of sample_id: a sample's parts, a line each."""
    columns = ["sample_id", "domain", "response_tokens", "parts"]
    tables = []
    ids = np.concatenate([id_array(index) for index in pool.index(["sample_id"])])
    for table in pool_rows(pool, ids, columns):
        samples = table["parts"].to_pylist()
        texts = ["".join(f"{part['text']}\n" for part in parts) for parts in samples]
        text = pa.array(texts, pa.large_string())
        tables.append(table.drop_columns("parts").append_column("text", text))
    return pa.concat_tables(tables).sort_by("sample_id")
