"""Which published scores are those that a command needs; where none are, which setting differs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from instructdiff_ray.config.run import Config
from instructdiff_ray.context import RunContext
from instructdiff_ray.errors import UserError, require
from instructdiff_ray.models.model import Model, ModelByDomain
from instructdiff_ray.pipeline import calibrations, draw_warmup
from instructdiff_ray.pool.pool import Pool
from instructdiff_ray.results.card import model_name
from instructdiff_ray.scoring.spec import ScoreSpec
from instructdiff_ray.scoring.store import scorer_inputs
from instructdiff_ray.selection.requirements import required_scores
from instructdiff_ray.selection.strategies import SMALL, SMALL_ALONE, repeat_scores
from instructdiff_ray.sharing.publication import Publication, PublishedScores
from instructdiff_ray.sharing.settings import (
    Difference,
    draw_differences,
    input_differences,
    listed,
    selection_differences,
    shown,
)
from instructdiff_ray.storage.artifacts import make_key
from instructdiff_ray.storage.filesystem import join
from instructdiff_ray.training.calibrate import calibrated_identity, model_artifact
from instructdiff_ray.training.known_models import NOTE, find_calibrated, model_elsewhere

UNPUBLISHED = "unpublished"  # in the place of a model of which no scores are published
ADVICE = "set them as they are there, or pull what does not differ with --only"


@dataclass(frozen=True)
class Match:
    """Published scores that are wanted. domain: None: of all; model: that they are of."""

    scores: PublishedScores
    spec: ScoreSpec
    domain: str | None

    @property
    def model(self) -> Model:
        return self.spec.model_of(self.domain)


@dataclass(frozen=True)
class Matches:
    """found: what can be pulled; missing: names of scores that are wanted and not published."""

    found: Sequence[Match]
    missing: Sequence[str]


def match_scores(
    context: RunContext, publication: Publication, origin: str, only: Sequence[str]
) -> Matches:
    """What the configured run needs of what is published, so far as this is known without the pool.

    origin: the repository and its commit; only: names of scores, none: all. Raises UserError in a
    line that names the settings, where what is published under a name was made with others.
    """
    found: dict[str, Match] = {}
    missing: dict[str, None] = {}
    needed: dict[str, None] = {}
    for number in range(1, context.config.rounds + 1):
        calibrated: list[ModelByDomain] = []
        for repeat in context.repeats() if context.strategy.calibrates else ():
            name = repeat_scores(len(calibrated))
            if not only or name in only:
                _check_training(context, repeat, publication, number, name)
            calibrated.append(_models(context, publication, number, name, origin))
        specs = required_scores(context.config, context.base, calibrated, context.baseline_models)
        needed |= dict.fromkeys(spec.name for spec in specs)
        for spec in specs:
            if only and spec.name not in only:
                continue
            matches = _match(context, publication, number, spec)
            for match in matches:
                found.setdefault(match.scores.key, match)
            if not matches:
                of_round = f" of round {number}" if number > 1 else ""
                missing[f"{spec.name}{of_round}"] = None
    unknown = ", ".join(name for name in only if name not in needed)
    require(
        not unknown,
        f"--only {unknown}: these settings need no such scores; they need {', '.join(needed)}",
    )
    return Matches([*found.values()], [*missing])


def check_pool(
    context: RunContext, publication: Publication, matches: Matches, pool: Pool
) -> list[str]:
    """The names of scores of domains of this pool that are wanted and not published. Raises
    UserError where the first round would calibrate on other samples of this pool."""
    found = {match.spec.name for match in matches.found if match.scores.trained}
    missing = []
    for number, repeat in enumerate(context.repeats()):
        name = repeat_scores(number)
        if name not in found:
            continue
        trained = {each.domain or "": each.trained for each in _named(publication, 1, name)}
        parts = calibrations(repeat, pool, draw_warmup(repeat, pool))
        for domain, (config, ids) in parts.items():
            artifact, _ = model_artifact(config, context.base, ids, context.storage)
            if domain in trained and trained[domain] != artifact.key:
                raise UserError(_other_pool(publication, pool))
            if trained and domain not in trained:
                missing.append(f"{name} of {domain}")
    return missing


def check_models(context: RunContext, publication: Publication, matches: Sequence[Match]) -> None:
    """Raises UserError where the storage knows one of the models by other weights: it has trained
    it itself, or has scores of another training. Of two, a run would use one."""
    for key in sorted({str(match.scores.trained) for match in matches if match.scores.trained}):
        artifact = context.storage.artifact("models", key)
        model = find_calibrated(context.base, artifact)
        if model and model.identity != calibrated_identity(key, publication.models[key].weights):
            here = (
                f"has scores of models/{key} from {model.known_from} (its note is"
                f" {join(artifact.home.path, NOTE)})"
                if model.known_from
                else f"has trained models/{key} itself"
            )
            raise UserError(
                f"this storage {here}, of other weights than those of the published scores, which"
                " it would never use; pull the others with --only, or these into another storage"
            )


def _other_pool(publication: Publication, pool: Pool) -> str:
    there = publication.pool
    place = f" (data.path={shown(there['path'])})" if there["path"] else ""
    same = "as many" if there["samples"] == len(pool) else f"{len(pool):,}"
    return (
        "the published calibrated model was trained on other samples than this pool gives: the pool"
        f" was another one there, of {there['samples']:,} samples{place}, and here of {same}; name"
        " the same data, or pull the base scores with --only base"
    )


def _check_training(
    context: RunContext, repeat: RunContext, publication: Publication, number: int, name: str
) -> None:
    """Raises UserError where the published models of this round and name were trained otherwise.
    repeat: the context with the repeat's own seed."""
    differences: list[Difference] = []
    for scores in _named(publication, number, name):
        config = _config_of(repeat.config, scores.domain)
        _, here = model_artifact(config, repeat.base, [], repeat.storage)
        there = publication.models[str(scores.trained)].inputs
        unlike = input_differences(
            {**there, "samples": None},
            {**here, "samples": None},
            _bases(repeat, publication),
            "model.base",
        )
        # The seed of a repeat follows from that of the run, which is compared below.
        differences += [each for each in unlike if each.setting != "seed"]
        differences += draw_differences(publication.settings, context.config)
        if number > 1:
            differences += selection_differences(publication.settings, context.config)
    if differences:
        raise UserError(f"{_head(name)}: {listed(dict.fromkeys(differences))}; {ADVICE}")


def _config_of(config: Config, domain: str | None) -> Config:
    return config if domain is None else replace(config, calibrate=config.calibrate_of(domain))


def _models(
    context: RunContext, publication: Publication, number: int, name: str, origin: str
) -> ModelByDomain:
    """The published model of this round and name, or those of all domains; what stands for it
    where there is none."""
    models: dict[str | None, Model] = {}
    for scores in _named(publication, number, name):
        key, weights = str(scores.trained), publication.models[str(scores.trained)].weights
        here = find_calibrated(context.base, context.storage.artifact("models", key))
        same = here is not None and here.digest == weights
        models[scores.domain] = (
            here if here and same else model_elsewhere(context.base, key, weights, origin)
        )
    if not models:
        return replace(context.base, identity=UNPUBLISHED)
    return models.get(None) or {str(domain): model for domain, model in models.items()}


def _named(publication: Publication, number: int, name: str) -> Iterator[PublishedScores]:
    for scores in publication.scores:
        if scores.name == name and scores.round == number and scores.trained:
            yield scores


def _match(
    context: RunContext, publication: Publication, number: int, spec: ScoreSpec
) -> list[Match]:
    """What is published of the scores of a spec."""
    by_key = {scores.key: scores for scores in publication.scores}
    matches = []
    for domain, here in scorer_inputs(spec, context.config.cluster.precision).items():
        if scores := by_key.get(make_key(**here)):
            require(
                tuple(scores.measures) == spec.encoding.measures,
                f"the published {spec.name} scores have not the columns that they should have",
            )
            matches.append(Match(scores, spec, domain))
        elif here["model"] != UNPUBLISHED:
            _refuse_unlike(context, publication, number, spec, domain, here)
    return matches


def _refuse_unlike(
    context: RunContext,
    publication: Publication,
    number: int,
    spec: ScoreSpec,
    domain: str | None,
    here: Mapping[str, Any],
) -> None:
    """Raises UserError where scores of this name are published, of another model, say."""
    for scores in publication.scores:
        same_model = scores.round == number if scores.trained else True
        if scores.name == spec.name and scores.domain == domain and same_model:
            base, models = _model_setting(context, publication, spec)
            differences = input_differences(scores.scorer, here, models, base)
            raise UserError(f"{_head(spec.name)}: {listed(differences)}; {ADVICE}")


def _model_setting(
    context: RunContext, publication: Publication, spec: ScoreSpec
) -> tuple[str, tuple[str, str]]:
    """The setting that names the model of a spec, and what it is there and here."""
    if spec.name in (SMALL, SMALL_ALONE):
        return "baseline.small_model", ("another model", model_name(spec.model_of(None)))
    if spec.encoding.form == "rating":
        return "baseline.rating_models", ("another model", model_name(spec.model_of(None)))
    return "model.base", _bases(context, publication)


def _bases(context: RunContext, publication: Publication) -> tuple[str, str]:
    there = publication.base_model
    name, commit, identity = (shown(there[name]) for name in ("name", "commit", "identity"))
    at = f"at commit {commit}" if there["commit"] else f"(a local folder; content {identity})"
    return f"{name} {at}", model_name(context.base)


def _head(name: str) -> str:
    return f"the published {name} scores do not fit these settings"
