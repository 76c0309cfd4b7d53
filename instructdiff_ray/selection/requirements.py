"""Which model is shown what, for each role of scores that a strategy needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from instructdiff_ray.config.data import TemplateConfig
from instructdiff_ray.config.run import Config
from instructdiff_ray.models.encoding import Rendering
from instructdiff_ray.models.model import Model, find_model
from instructdiff_ray.scoring.forwards import Forward
from instructdiff_ray.selection.strategies import (
    ALONE,
    BASE,
    CALIBRATED,
    RATING,
    SMALL,
    SMALL_ALONE,
    STRATEGIES,
    WORDINGS,
)

# As the authors of Superfiltering have it.
SMALL_MAX_LENGTH = 1024


@dataclass(frozen=True)
class OtherModels:
    """Models of a baseline besides the base model. weights: of the raters, shares of 1."""

    small: Model | None = None
    raters: Sequence[Model] = ()
    weights: Sequence[float] = field(default=(1.0,))


def find_other_models(config: Config, base: Model) -> OtherModels:
    """What the strategy needs, checked. Raises UserError where a model can't be found."""
    roles = STRATEGIES[config.strategy].roles
    small = None
    if SMALL in roles:
        small = _find(config, config.baseline.small_model, "baseline.small_model")
    if not any(role.startswith(RATING) for role in roles):
        return OtherModels(small)
    names = config.baseline.rating_models if RATING in roles else []
    raters = [_find(config, name, "baseline.rating_models") for name in names] or [base]
    for rater in raters:
        Rendering.for_rating(rater, 0).rating_tokens()  # now, and not in an actor
    sizes = [rater.parameters() if len(raters) > 1 else 1 for rater in raters]
    return OtherModels(small, raters, [size / sum(sizes) for size in sizes])


def _find(config: Config, name: str, setting: str) -> Model:
    return find_model(replace(config.model, base=name, revision=None), setting)


def needed_forwards(
    config: Config, base: Model, calibrated: Model | Mapping[str, Model] | None, others: OtherModels
) -> dict[str, Forward]:
    """By role, all that the strategy and the options need."""
    roles = list(STRATEGIES[config.strategy].roles)
    if RATING in roles:
        models = range(len(others.raters))
        roles = [f"{RATING}-{m}-{k}" for m in models for k in range(WORDINGS)]
    if config.excludes("mismatched"):
        roles = list(dict.fromkeys([*roles, BASE, ALONE]))
    return {role: _forward(role, config, base, calibrated, others) for role in roles}


def _forward(
    role: str,
    config: Config,
    base: Model,
    calibrated: Model | Mapping[str, Model] | None,
    others: OtherModels,
) -> Forward:
    if role.startswith(RATING):
        model, wording = (int(number) for number in role.split("-")[1:])
        rater = others.raters[model]
        return Forward(rater, Rendering.for_rating(rater, wording))
    if role in (SMALL, SMALL_ALONE):
        assert others.small
        limit = min(SMALL_MAX_LENGTH, others.small.max_length or SMALL_MAX_LENGTH)
        rendering = Rendering(others.small, TemplateConfig(), limit, truncate=True)
        return Forward(others.small, rendering if role == SMALL else rendering.alone())
    rendering = Rendering.of(config, base)
    if role == CALIBRATED:
        assert calibrated
        return Forward(calibrated, rendering)
    return Forward(base, rendering if role == BASE else rendering.alone())
