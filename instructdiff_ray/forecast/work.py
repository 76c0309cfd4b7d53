"""What a run still has models do: trainings and passes over the pool, counted before it starts.

The rounds are walked as the pipeline walks them, with what is finished in storage. Which samples a
later round trains on is only known once the round before is finished: until then their number is
what the settings say, and their length that of the pool.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from instructdiff_ray.config.run import Config
from instructdiff_ray.context import RunContext
from instructdiff_ray.errors import UserError
from instructdiff_ray.models.model import Model, ModelByDomain, models_by_domain
from instructdiff_ray.pipeline import (
    calibrations,
    draw_warmup,
    rank_pool,
    score_pool,
    selected_samples,
)
from instructdiff_ray.pool.ingest import pool_artifact
from instructdiff_ray.pool.partition import among, id_array
from instructdiff_ray.pool.pool import Pool, open_pool
from instructdiff_ray.pool.preview import SampledPool, preview_pool
from instructdiff_ray.pool.sampling import floor_share
from instructdiff_ray.scoring.placement import MOST_MODELS
from instructdiff_ray.scoring.plan import count_lacking
from instructdiff_ray.scoring.stage import check_weights
from instructdiff_ray.scoring.store import score_stores
from instructdiff_ray.selection.budgets import Size
from instructdiff_ray.selection.mixture import budgets_of, check_mixture, pool_sizes
from instructdiff_ray.selection.requirements import required_scores
from instructdiff_ray.selection.strategies import repeat_scores
from instructdiff_ray.training.calibrate import model_artifact
from instructdiff_ray.training.known_models import find_calibrated

CALIBRATE, SCORE = "calibrate", "score"  # as the stages of a run are called
# In the place of a model that is not trained yet: under this identity nothing is in storage.
UNTRAINED = "untrained"


@dataclass(frozen=True)
class Work:
    """Models at work in one stage of one round.

    models: the names of their scores; samples: that are trained on, or passed over; tokens: that
    all these models read, in all epochs; starts: trainings, or passes, one after the other.
    """

    stage: str
    round: int
    models: tuple[str, ...]
    samples: float
    tokens: float
    starts: int = 1


@dataclass(frozen=True)
class DomainSize:
    """Of a domain of the pool: samples, their tokens, and those of their responses; and the most
    that one sample has of these."""

    samples: float
    tokens: float
    response_tokens: float
    longest: int
    longest_response: int


@dataclass
class Plan:
    """What a run will do, and what it will find.

    pool: the pool, or what is known of it by a sample; sizes: of its domains; work: in the order
    of the run; scored: the models of the passes, the base model for what is calibrated from it;
    in_storage: what is there already, for people.
    """

    pool: Pool
    sizes: Mapping[str, DomainSize]
    work: list[Work] = field(default_factory=list)
    scored: list[Model] = field(default_factory=list)
    in_storage: list[str] = field(default_factory=list)

    @property
    def exact(self) -> bool:
        """Whether all rows were looked at."""
        return not isinstance(self.pool, SampledPool) or self.pool.whole


def plan_run(context: RunContext) -> Plan:
    """What `instructdiff run` would do with this configuration; runs no model, writes nothing."""
    artifact, _ = pool_artifact(context.config, context.files, context.base, context.storage)
    finished = artifact.finished()
    if finished:
        pool = open_pool(finished)
    else:
        pool = preview_pool(context.config, context.files, context.base)
    plan = Plan(pool, domain_sizes(pool))
    if context.config.select.mixture and plan.exact:
        check_mixture(context.config, pool_sizes(pool))
    if finished:
        plan.in_storage.append("the pool")
    if not context.strategy.calibrates:
        _plan_scoring(context, plan, 1, ())
        return plan
    samples = None if _only_sampled(pool) else [draw_warmup(r, pool) for r in context.repeats()]
    for number in range(1, context.config.rounds + 1):
        models = _plan_calibrations(context, plan, number, samples)
        _plan_scoring(context, plan, number, models)
        samples = None
        if number < context.config.rounds and not plan.work:
            with suppress(UserError):  # all was scored, and not gathered
                scores = score_pool(context, pool, models, build=False)
                samples = selected_samples(context, pool, rank_pool(context, pool, scores))
    return plan


def domain_sizes(pool: Pool) -> dict[str, DomainSize]:
    """The size of each domain, by its name."""
    columns = ("tokens", "response_tokens")
    tables = []
    for index in pool.index(["domain", *columns]):
        named = index.set_column(0, "domain", index["domain"].cast(pa.string()))
        sums = [(column, how) for column in columns for how in ("sum", "max")]
        tables.append(named.group_by("domain").aggregate([*sums, ("domain", "count")]))
    scale, sizes = _scale(pool), {}
    table = pa.concat_tables(tables)
    for name in sorted(table["domain"].unique().to_pylist()):
        rows = table.filter(pc.equal(table["domain"], name))
        samples, *tokens = (
            scale * pc.sum(rows[c]).as_py()
            for c in ("domain_count", *(f"{c}_sum" for c in columns))
        )
        longest = (int(pc.max(rows[f"{column}_max"]).as_py()) for column in columns)
        sizes[name] = DomainSize(samples, *tokens, *longest)
    return sizes


def _scale(pool: Pool) -> float:
    return pool.scale if isinstance(pool, SampledPool) else 1.0


def _only_sampled(pool: Pool) -> bool:
    return isinstance(pool, SampledPool) and not pool.whole


def _plan_calibrations(
    context: RunContext, plan: Plan, number: int, samples: Sequence[list[str]] | None
) -> list[ModelByDomain]:
    """The trainings of a round, and the models of all repeats: finished ones, and what stands for
    those that are not. samples: of each repeat, None where they are not known yet."""
    models: list[ModelByDomain] = []
    lacking, trained, tokens = [], 0.0, 0.0
    for repeat, context_of_repeat in enumerate(context.repeats()):
        name = repeat_scores(repeat)
        if samples is None:
            sizes = _expected(context.config, plan, number)
        else:
            sizes = _known(context_of_repeat, plan.pool, samples[repeat])
        by_domain: dict[str, Model] = {}
        for domain, size in sizes.items():
            by_domain[domain] = size.model or _stand_in(context.base, size.config, name, domain)
            if size.model is None:
                lacking.append(f"{name} of {domain}" if domain else name)
                trained, tokens = trained + size.samples, tokens + size.tokens
        models.append(by_domain.get("") or by_domain)
    if lacking:
        plan.work.append(Work(CALIBRATE, number, (*lacking,), trained, tokens, len(lacking)))
    total = sum(len(models_by_domain(each)) for each in models)
    if len(lacking) < total:
        finished = f"{total - len(lacking)} of {total} calibrated models"
        plan.in_storage.append(finished + _of_round(context.config, number))
    return models


@dataclass(frozen=True)
class _Training:
    """samples, tokens: of all epochs; model: what came of it, None: it is to be done."""

    config: Config
    samples: float
    tokens: float
    model: Model | None = None


def _known(context: RunContext, pool: Pool, sample_ids: list[str]) -> dict[str, _Training]:
    """The trainings on these samples, by domain."""
    trainings = {}
    for domain, (config, ids) in calibrations(context, pool, sample_ids).items():
        artifact, _ = model_artifact(config, context.base, ids, context.storage)
        tokens = config.calibrate.epochs * _tokens_of(pool, ids)
        model = find_calibrated(context.base, artifact)
        trainings[domain] = _Training(config, len(ids), tokens, model)
    return trainings


def _tokens_of(pool: Pool, sample_ids: Sequence[str]) -> int:
    """What a training on these samples reads in an epoch: each ends with a token of its own."""
    wanted, total = np.array(sorted(sample_ids), dtype="S"), len(sample_ids)
    for index in pool.index(["sample_id", "tokens"]):
        total += int(index["tokens"].to_numpy()[among(id_array(index), wanted)].sum())
    return total


def _expected(config: Config, plan: Plan, number: int) -> dict[str, _Training]:
    """The same where it is not known which samples it will be."""
    counts = {name: _expected_samples(config, plan, number, name) for name in plan.sizes}
    if config.calibrate.per_domain:
        return {
            name: _expected_training(replace(config, calibrate=config.calibrate_of(name)), plan, of)
            for name, of in ((name, {name: count}) for name, count in counts.items())
        }
    return {"": _expected_training(config, plan, counts)}


def _expected_samples(config: Config, plan: Plan, number: int, domain: str) -> int:
    pool = round(plan.sizes[domain].samples)
    if number == 1:
        return floor_share(config.calibrate_of(domain).ratio, pool)
    sizes = {
        name: Size(round(size.samples), round(size.response_tokens))
        for name, size in plan.sizes.items()
    }
    budget = budgets_of(config, sizes)[domain]
    # Tokens as if those selected were as long as the others.
    count = round(budget.size * pool / max(1, sizes[domain].of(budget.unit)))
    return min(pool, max(budget.least, min(budget.most, count)))


def _expected_training(config: Config, plan: Plan, counts: Mapping[str, int]) -> _Training:
    samples = sum(counts.values())
    tokens = sum(
        count * (1 + plan.sizes[name].tokens / plan.sizes[name].samples)
        for name, count in counts.items()
    )
    most = config.calibrate.max_samples
    share = min(1.0, most / samples) if most and samples else 1.0
    return _Training(config, share * samples, share * config.calibrate.epochs * tokens)


def _stand_in(base: Model, config: Config, name: str, domain: str) -> Model:
    identity = f"{UNTRAINED} {name} {domain}"
    if config.calibrate.lora_rank:
        return replace(base, identity=identity, adapter=identity)
    return replace(base, identity=identity, path=identity)


def _plan_scoring(
    context: RunContext, plan: Plan, number: int, calibrated: Sequence[ModelByDomain]
) -> None:
    """The passes of a round, for what is in storage neither gathered nor in shards."""
    config, pool, scale = context.config, plan.pool, _scale(plan.pool)
    specs = required_scores(config, context.base, calibrated, context.baseline_models)
    stores = score_stores(specs, pool, config.cluster.precision, context.storage)
    # What an earlier round scores in this plan is there by then: the base model's, say.
    planned = {name for work in plan.work if work.stage == SCORE for name in work.models}
    again = {store.spec.name for store in stores if not _untrained(store.spec.model)} & planned
    by_key = {store.artifact.key: store for store in reversed(stores)}
    missing = [
        store
        for store in stores
        if by_key[store.artifact.key] is store
        and store.spec.name not in again
        and not store.artifact.finished()
    ]
    most_models = config.cluster.score.models_per_actor or MOST_MODELS
    lacked = {store.spec.name: 0.0 for store in missing}
    for targets, lacking in count_lacking(pool, missing, most_models):
        check_weights(targets, lacking.samples, context.storage)
        names = tuple(target.name for target in targets)
        samples, tokens = scale * lacking.samples, scale * lacking.tokens
        plan.work.append(Work(SCORE, number, names, samples, tokens))
        plan.scored += [context.base if UNTRAINED in t.model.identity else t.model for t in targets]
        for name in names:
            lacked[name] += samples
    for store in stores:
        name = store.spec.name
        there = len(pool) - lacked.get(name, 0.0)
        if name not in again and round(there) > 0:
            of = f" of {there:,.0f} samples" if name in lacked else ""
            line = f"{name} scores{of}"
            if store.spec.model in calibrated:
                line += _of_round(config, number)
            if line not in plan.in_storage:
                plan.in_storage.append(line)


def _of_round(config: Config, number: int) -> str:
    return f" of round {number}" if config.rounds > 1 else ""


def _untrained(model: ModelByDomain) -> bool:
    return any(UNTRAINED in m.identity for m in models_by_domain(model).values())
