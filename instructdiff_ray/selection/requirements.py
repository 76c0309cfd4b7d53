"""What a strategy and the guards need: settings that go together, and which model reads the samples
in which form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from instructdiff_ray.config.data import TemplateConfig
from instructdiff_ray.config.run import Config
from instructdiff_ray.config.training import FULL
from instructdiff_ray.errors import UserError, require
from instructdiff_ray.models.encoding import EncoderSpec
from instructdiff_ray.models.find import find_model
from instructdiff_ray.models.model import Model, ModelByDomain
from instructdiff_ray.scoring.spec import ScoreSpec
from instructdiff_ray.selection.guards import GUARDS
from instructdiff_ray.selection.strategies import (
    ALONE,
    BASE,
    CALIBRATED,
    ENDING,
    SMALL,
    SMALL_ALONE,
    STRATEGIES,
    rating_scores,
    repeat_scores,
)

# As the authors of Superfiltering have it.
SMALL_MAX_LENGTH = 1024


@dataclass(frozen=True)
class BaselineModels:
    """Models of a baseline besides the base model.

    raters: those that rate, the base model may be one; weights: theirs, shares of 1.
    """

    small: Model | None = None
    raters: Sequence[Model] = ()
    weights: Sequence[float] = ()


def check_strategy(config: Config) -> None:
    """Raises UserError where the configured strategy is unknown, or can't do what is asked."""
    name = config.strategy
    require(name in STRATEGIES, f"strategy={name} is not known; use one of {', '.join(STRATEGIES)}")
    strategy = STRATEGIES[name]
    require(
        config.rounds == 1 or strategy.calibrates,
        f"rounds={config.rounds} makes no sense with strategy={name}, which calibrates no model;"
        " use rounds=1",
    )
    if strategy.calibrates:  # other strategies have no filter
        _check_room(config)
        if config.calibrate.repeats > 1:
            _check_repeats(config)
    require(
        strategy.order is None or not (config.excludes_warmup() or guards_in_force(config)),
        f"strategy={name} goes by the whole set and can exclude no sample from it; leave out"
        " select.exclude_warmup, and all of select.guard that needs no calibrated model",
    )


def _check_room(config: Config) -> None:
    if (
        config.select.mixture
    ):  # all of the selection has room in the domain of the least γ, or nowhere
        min(config.all_select(), key=lambda select: select.reject_ratio).check_room()
        return
    config.select.check_room()
    for domain in config.domains:
        config.select_of(domain).check_room(f"domains.{domain}: ")


def check_arms(config: Config) -> None:
    """Raises UserError where `evaluate.arms` names what is no strategy, or one that can't do what
    is asked."""
    for arm in config.evaluate.arms:
        require(
            arm == FULL or arm in STRATEGIES,
            f"evaluate.arms: {arm} is not known; use {FULL}, or of the strategies"
            f" {', '.join(STRATEGIES)}",
        )
    for strategy in arm_strategies(config):
        try:
            check_strategy(of_strategy(config, strategy))
        except UserError as error:
            raise UserError(f"evaluate.arms: {error}") from None


def arm_strategies(config: Config) -> list[str]:
    """The strategies among what `instructdiff evaluate` compares, in their order."""
    return [arm for arm in config.arms() if arm != FULL]


def of_strategy(config: Config, name: str) -> Config:
    """The same with another strategy; one that calibrates no model has one round."""
    rounds = config.rounds if STRATEGIES[name].calibrates else 1
    return replace(config, strategy=name, rounds=rounds)


def _check_repeats(config: Config) -> None:
    """How stable a selection is is known of the method alone; and what several repeats are
    calibrated on may be most of the pool."""
    require(
        not config.excludes_warmup(),
        "select.exclude_warmup=true excludes what any repeat was calibrated on, too much of the"
        " pool; use calibrate.repeats=1",
    )
    require(
        config.select.filter == "nll"
        and all(config.select_of(name).entropy == "lowest" for name in ("", *config.domains)),
        f"calibrate.repeats={config.calibrate.repeats} goes with select.filter=nll and"
        " select.entropy=lowest alone; use calibrate.repeats=1 for ablations",
    )


def guards_in_force(config: Config) -> tuple[str, ...]:
    """The guards of any domain, but those that need a calibrated model where the strategy has none:
    a baseline is what its authors made it."""
    calibrates = STRATEGIES[config.strategy].calibrates
    return tuple(g for g in config.guards() if calibrates or not GUARDS[g].calibrates)


def guards_to_show(config: Config) -> tuple[str, ...]:
    """The guards in force, and those whose values cost no pass: a run says what it would have
    excluded."""
    strategy, in_force = STRATEGIES[config.strategy], guards_in_force(config)
    return tuple(
        name
        for name, guard in GUARDS.items()
        if name in in_force or strategy.calibrates and {*guard.scores} <= {*strategy.scores}
    )


def find_baseline_models(config: Config, base: Model) -> BaselineModels:
    """What the strategy needs, checked. Raises UserError where a model can't be found."""
    strategy = STRATEGIES[config.strategy]
    small = None
    if SMALL in strategy.scores:
        small = _find(config, config.baseline.small_model, "baseline.small_model")
    raters = _find_raters(config, base) if strategy.wordings else []
    sizes = [rater.parameters() if len(raters) > 1 else 1 for rater in raters]
    return BaselineModels(small, raters, [size / sum(sizes) for size in sizes])


def _find_raters(config: Config, base: Model) -> list[Model]:
    all_raters = STRATEGIES[config.strategy].rating_models
    names = config.baseline.rating_models if all_raters else []
    raters = [_find(config, name, "baseline.rating_models") for name in names] or [base]
    for rater in raters:
        EncoderSpec.for_rating(rater, 0).rating_tokens()  # now, and not in an actor
    return raters


def _find(config: Config, name: str, setting: str) -> Model:
    return find_model(replace(config.model, base=name, revision=None), setting)


def required_scores(
    config: Config,
    base: Model,
    calibrated: Sequence[ModelByDomain],
    baseline_models: BaselineModels,
) -> list[ScoreSpec]:
    """All scores that the strategy and the options need. calibrated: of each repeat; of a
    baseline none."""
    strategy, whole = STRATEGIES[config.strategy], EncoderSpec.of(config, base)
    specs = {
        BASE: ScoreSpec(BASE, base, whole),
        ALONE: ScoreSpec(ALONE, base, whole.alone()),
    }
    repeats = [ScoreSpec(repeat_scores(r), model, whole) for r, model in enumerate(calibrated)]
    if repeats:
        specs[CALIBRATED] = repeats[0]
        # Of the first repeat alone: the guard's limit is far out, and its pass costs as much.
        specs[ENDING] = ScoreSpec(ENDING, calibrated[0], whole.ending())
    if baseline_models.small:
        limit = min(SMALL_MAX_LENGTH, baseline_models.small.max_length or SMALL_MAX_LENGTH)
        encoding = EncoderSpec(baseline_models.small, TemplateConfig(), limit, truncate=True)
        specs[SMALL] = ScoreSpec(SMALL, baseline_models.small, encoding)
        specs[SMALL_ALONE] = ScoreSpec(SMALL_ALONE, baseline_models.small, encoding.alone())
    of_guards = dict.fromkeys(name for g in guards_in_force(config) for name in GUARDS[g].scores)
    guard_only = [name for name in of_guards if name not in strategy.scores]
    ratings = [
        ScoreSpec(rating_scores(number, wording), rater, EncoderSpec.for_rating(rater, wording))
        for number, rater in enumerate(baseline_models.raters)
        for wording in range(strategy.wordings)
    ]
    # A sample that lacks several scores is a reject for the first of them.
    return [
        *(specs[name] for name in strategy.scores),
        *repeats[1:],
        *ratings,
        *(specs[name] for name in guard_only),
    ]
