"""Does a selection teach more than others, or than random samples, or than all of them?

A share of the pool is held out. On the rest, for each seed, a model is trained on what each arm
selects: as many samples, and as many response tokens, as the first strategy. How likely each finds
the held-out responses is the result: the NLL over all their tokens, in nats. Lower is better.
Besides, named benchmark tasks are run on each model.

Trained models, scores of the pool and of what is held out are artifacts, so a command that was
killed goes on, and a further seed or arm costs what it alone needs.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from instructdiff_ray.config.training import RANDOM
from instructdiff_ray.context import RunContext
from instructdiff_ray.errors import UserError
from instructdiff_ray.evaluation.arms import (
    MATCHINGS,
    SelectingCost,
    TrainingSet,
    count_tokens,
    training_sets,
)
from instructdiff_ray.evaluation.comparison import UNTRAINED, Evaluation, HeldOut, Trained
from instructdiff_ray.evaluation.lm_eval import benchmark
from instructdiff_ray.models.encoding import EncoderSpec
from instructdiff_ray.models.model import Model
from instructdiff_ray.pipeline import finetune_on, ingest_pool
from instructdiff_ray.pool.partition import id_array
from instructdiff_ray.pool.pool import Pool
from instructdiff_ray.scoring.spec import ScoreSpec
from instructdiff_ray.scoring.stage import score
from instructdiff_ray.scoring.stats import ScoringStats
from instructdiff_ray.selection.requirements import arm_strategies
from instructdiff_ray.training.calibrate import model_artifact


def evaluate(context: RunContext) -> Evaluation:
    """All arms, all seeds. Raises UserError where a model can't score what is held out."""
    config = context.config
    arms, reference = config.arms(), arm_strategies(config)[0]
    pool, rest = ingest_pool(context).divide(config.evaluate.holdout, config.seed)
    # First, for what can't be scored or run is then known before anything is trained.
    nll_sums, tokens = held_out_nll(context, pool, context.target)
    tables = list(pool.index(["sample_id", "domain"]))
    ids = np.concatenate([id_array(table) for table in tables])
    domains = [name for table in tables for name in table["domain"].to_pylist()]
    held_out = HeldOut(ids, np.array(domains), tokens)
    untrained = Trained(
        UNTRAINED, MATCHINGS, config.seed, 0, 0, 0, SelectingCost(), context.target.path, nll_sums
    )
    results = [_with_benchmarks(context, untrained, context.target)]
    for seed in range(config.seed, config.seed + config.evaluate.seeds):
        seeded = context.with_seed(seed)
        for chosen in training_sets(seeded, rest):
            results.append(_train_and_judge(seeded, rest, chosen, pool))
    baseline = RANDOM if RANDOM in arms else reference
    return Evaluation(arms, reference, baseline, held_out, results)


def _train_and_judge(
    context: RunContext, rest: Pool, chosen: TrainingSet, held_out: Pool
) -> Trained:
    _announce(context, chosen)
    model = finetune_on(context, rest, chosen.ids)
    nll_sums, _ = held_out_nll(context, held_out, model)
    lengths = {
        column: sum(count_tokens(rest, chosen.ids, column).values())
        for column in ("response_tokens", "tokens")
    }
    trained = Trained(
        chosen.arm,
        chosen.matchings,
        context.config.seed,
        len(chosen.ids),
        lengths["response_tokens"],
        lengths["tokens"] * context.config.calibrate.epochs,
        chosen.cost,
        model.trained,
        nll_sums,
    )
    return _with_benchmarks(context, trained, model)


def _with_benchmarks(context: RunContext, trained: Trained, model: Model) -> Trained:
    found = benchmark(context.config, model, context.storage, context.progress)
    return replace(trained, benchmarks=found)


def _announce(context: RunContext, chosen: TrainingSet) -> None:
    artifact, _ = model_artifact(context.config, context.target, chosen.ids, context.storage)
    matched = f", as many {chosen.matchings[0]}" if len(chosen.matchings) == 1 else ""
    state = ", trained before" if artifact.finished() else ""
    context.progress.say(
        f"seed {context.config.seed}, {chosen.arm}{matched}: {len(chosen.ids):,} samples{state}"
    )


def held_out_nll(
    context: RunContext, held_out: Pool, model: Model
) -> tuple[np.ndarray, np.ndarray]:
    """[N], [N]: of each held-out response the NLL of its tokens together, nats, and their number,
    in the order of sample_id."""
    spec = ScoreSpec("held_out", model, EncoderSpec.of(context.config, context.target))
    stats = ScoringStats()  # apart from what selecting costs
    scores = score(context.config, held_out, [spec], context.storage, context.progress, stats)
    sums, counts = [], []
    for rows in scores[spec.name].read(["nll", "response_tokens", "reason"]):
        if rows["nll"].null_count:  # or arms would be compared over different samples
            reasons = ", ".join(sorted(set(rows["reason"].drop_null().to_pylist())))
            raise UserError(
                f"{model.trained} can't score every held-out sample ({reasons}); take"
                " cluster.precision=fp32, or a calibrate.max_length that suits it"
            )
        counts.append(rows["response_tokens"].to_numpy())
        sums.append(rows["nll"].to_numpy() * counts[-1])
    return np.concatenate(sums), np.concatenate(counts)
