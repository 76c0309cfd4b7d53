"""`summary.json`: what a round read, rejected, scored and selected, and what it cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from instructdiff_ray.context import RunContext
from instructdiff_ray.forecast.cost import cost_of
from instructdiff_ray.forecast.work import CALIBRATE, SCORE
from instructdiff_ray.models.model import ModelByDomain, models_by_domain
from instructdiff_ray.pipeline import Round
from instructdiff_ray.results.composition import Concentration
from instructdiff_ray.results.warnings import find_warnings
from instructdiff_ray.scoring.origins import origins_of
from instructdiff_ray.scoring.spec import ScoreTable
from instructdiff_ray.scoring.store import score_stores
from instructdiff_ray.selection.counts import (
    by_domain,
    fate_counts,
    guard_counts,
    mixture_counts,
    scored_counts,
    stability_counts,
    token_counts,
)
from instructdiff_ray.selection.requirements import required_scores
from instructdiff_ray.selection.strategies import repeat_scores


def summarize(
    context: RunContext, result: Round, concentrations: Sequence[Concentration]
) -> dict[str, Any]:
    """The content of `summary.json`; seconds and forward passes are those of the command so far."""
    stats, ranking = context.stats, result.ranking
    counts = {
        **ranking.pool.counts,
        **scored_counts(ranking),
        "warmup": result.warmup,
        **fate_counts(ranking),
        **token_counts(ranking),
    }
    guards, mixture = guard_counts(ranking), mixture_counts(ranking)
    warnings = find_warnings(ranking, counts, guards, mixture, concentrations)
    scoring_s = context.progress.seconds.get("score", 0.0) if stats.tokens else 0.0
    paths = [model_paths(repeat) for repeat in result.calibrated]
    origins = _origins(context, result)
    return {
        "strategy": context.config.strategy,
        "round": result.number,
        "rounds": context.config.rounds,
        "counts": counts,
        "guards": guards,
        **({"mixture": mixture} if mixture else {}),
        "concentrations": [asdict(concentration) for concentration in concentrations],
        **({"stability": stability_counts(ranking)} if ranking.stability else {}),
        "warnings": [asdict(warning) for warning in warnings],
        "base_model": context.base.path,
        **({"base_commit": context.base.revision} if context.base.revision else {}),
        "calibrated_model": paths[0] if paths else None,
        **({"calibrated_models": paths} if len(paths) > 1 else {}),
        "scoring": {
            "precision": context.config.cluster.precision,
            "tokens": stats.tokens,
            "seconds": scoring_s,
            "tokens_per_second": stats.tokens / scoring_s if scoring_s else 0.0,
            "samples_scored": dict(stats.samples),
            "shares": stats.throughput.shares(),
            "forward_passes": stats.forward_passes,
        },
        "seconds": dict(context.progress.seconds),
        "cost": _cost(context, counts["pool"], scoring_s),
        **({"scores_from": origins} if origins else {}),
        "keys": {
            "pool": ranking.pool.key,
            **_scores_keys(ranking.scores),
            **_model_keys(result.calibrated),
        },
        "domains": by_domain(ranking),
    }


def _origins(context: RunContext, result: Round) -> list[dict[str, Any]]:
    """Which scores were not, or not all, computed in this storage, and where they come from."""
    config, pool, base = context.config, result.ranking.pool, context.base
    specs = required_scores(config, base, result.calibrated, context.baseline_models)
    stores = score_stores(specs, pool, config.cluster.precision, context.storage)
    return [
        {"scores": store.spec.name, **asdict(origin)}
        for store in stores
        for origin in origins_of(store.shards.values())
    ]


def _cost(context: RunContext, samples: int, scoring_s: float) -> dict[str, Any]:
    """What the command has cost so far, by the names by which `instructdiff plan` foretells it."""
    progress, tokens = context.progress, context.stats.tokens
    trained = progress.tokens.get(CALIBRATE, 0.0)
    training_s = progress.seconds.get(CALIBRATE, 0.0)
    pieces = [(CALIBRATE, samples, trained, training_s), (SCORE, samples, tokens, scoring_s)]
    return cost_of(context.config, pieces)


def model_paths(calibrated: ModelByDomain) -> str | None | dict[str, str | None]:
    """Where the calibrated model is, or by domain where each has its own; None of one whose weights
    are not here."""
    paths = {
        domain: None if model.known_from else model.trained
        for domain, model in models_by_domain(calibrated).items()
    }
    return paths.get("", paths)


def _scores_keys(scores: Mapping[str, ScoreTable]) -> dict[str, str]:
    return {f"{name}_scores": table.artifact.key for name, table in scores.items()}


def _model_keys(calibrated: Sequence[ModelByDomain]) -> dict[str, str]:
    return {
        "_".join(filter(None, (repeat_scores(repeat), "model", domain))): model.identity.split("/")[
            0
        ]
        for repeat, models in enumerate(calibrated)
        for domain, model in models_by_domain(models).items()
    }
