"""Score: the pool under one or several models, with Ray Data.

Two kinds of things are kept. *Shards* (shards.py) belong to a scorer (model, encoding, precision);
they appear while the job runs, and serve whatever pool holds their samples: a job that died goes
on, a pool that grew scores only what is new. From them the *scores* artifact is gathered: one row
for each sample of one pool, in the order of its index, complete, or not there at all.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import ExitStack

import pyarrow as pa

from instructdiff_ray.config.cluster import ClusterConfig
from instructdiff_ray.config.run import Config
from instructdiff_ray.engine.throughput import Throughput
from instructdiff_ray.errors import LostScores, require
from instructdiff_ray.models.encoding import EncoderSpec
from instructdiff_ray.models.model import Model
from instructdiff_ray.pool.pool import Pool
from instructdiff_ray.pool.rejects import check_rejects
from instructdiff_ray.progress import Progress, Stage
from instructdiff_ray.resources import require_gpus
from instructdiff_ray.scoring.dataflow import score_blocks
from instructdiff_ray.scoring.placement import MOST_MODELS, place
from instructdiff_ray.scoring.plan import ScorePass, Targets, by_encoding, plan_passes
from instructdiff_ray.scoring.shards import BackgroundFolds
from instructdiff_ray.scoring.spec import ScoreSpec, ScoreTable
from instructdiff_ray.scoring.stats import ScoringStats
from instructdiff_ray.scoring.store import ScoreStore, gather, score_stores
from instructdiff_ray.storage.artifacts import FinishedArtifact, Storage
from instructdiff_ray.storage.speeds import Speed, SpeedNote
from instructdiff_ray.telemetry import (
    REJECTED_SAMPLES,
    SCORED_SAMPLES,
    SCORED_TOKENS,
    SCORER_SECONDS,
)
from instructdiff_ray.training.known_models import weights_wanted


def score(
    config: Config,
    pool: Pool,
    specs: Sequence[ScoreSpec],
    storage: Storage,
    progress: Progress,
    stats: ScoringStats,
) -> dict[str, ScoreTable]:
    """The scores of the pool, by the name of their spec.

    What is in storage is not computed again; models that read samples in the same form and lack the
    same samples share their batches. `stats` is added to. Raises UserError where too many samples
    are rejected.
    """
    stores = score_stores(specs, pool, config.cluster.precision, storage)
    # Two specs may be the same model and the same encoding.
    by_key = {store.artifact.key: store for store in reversed(stores)}
    finished: dict[str, FinishedArtifact] = {}
    with ExitStack() as locks:
        missing = []
        # All runs lock in one order, so that no two wait for each other.
        for key, store in sorted(by_key.items()):
            artifact = locks.enter_context(store.artifact.lock(progress.say))
            if artifact is None:
                missing.append(store)
            else:
                finished[key] = artifact
        if missing:
            ordered = [store for store in stores if store in missing]
            try:
                finished.update(_compute(config, pool, ordered, storage, progress, stats))
            except LostScores:  # a file was damaged; it is deleted, so its scores are lacking now
                finished.update(_compute(config, pool, ordered, storage, progress, stats))
    return {store.spec.name: store.table(finished[store.artifact.key]) for store in stores}


def finished_scores(
    config: Config, pool: Pool, specs: Sequence[ScoreSpec], storage: Storage
) -> dict[str, ScoreTable]:
    """The same from storage alone; UserError where they were not computed yet."""
    todo = "run `instructdiff score` first"
    return {
        store.spec.name: store.table(store.artifact.require(f"the {store.spec.name} scores", todo))
        for store in score_stores(specs, pool, config.cluster.precision, storage)
    }


def _compute(
    config: Config,
    pool: Pool,
    stores: Sequence[ScoreStore],
    storage: Storage,
    progress: Progress,
    stats: ScoringStats,
) -> dict[str, FinishedArtifact]:
    """The scores that are missing, by key: passes for what no shard holds, then gathered."""
    with progress.watched():  # a GPU is asked for its memory
        passes, gpus = _plan(config, pool, stores, storage, progress)
    rejected: dict[EncoderSpec, Counter[str]] = defaultdict(Counter)
    tokens = sum(scoring_pass.tokens for scoring_pass in passes)
    folds, throughput = BackgroundFolds(), Throughput()
    with progress.stage("score", "samples", tokens) as stage:
        for scoring_pass in passes:
            targets = scoring_pass.targets
            for receipt in score_blocks(config, pool, scoring_pass, gpus):
                throughput.add(_account(receipt, targets, rejected, stats, stage))
                _add_pieces(receipt, targets, folds)
                for encoding, reasons in rejected.items():
                    if encoding.form == "whole":  # of others, the selection needs it or not
                        check_rejects(pool, config.data.max_reject_ratio, reasons)
    if passes:
        devices, models = max(1, gpus), [each.model for part in passes for each in part.targets]
        speed = Speed(
            throughput.tokens,
            stage.elapsed(),
            devices * throughput.busy_s,
            devices * throughput.scorers / len(passes),
            starts=len(passes),
        )
        scoring_speed(config.cluster, models, storage).write(speed)
    with progress.watched():  # machines without GPUs may have gone while those with them worked
        folds.wait()
        return {store.artifact.key: _gather(pool, store) for store in stores}


def scoring_speed(cluster: ClusterConfig, models: Sequence[Model], storage: Storage) -> SpeedNote:
    """Where the speed of scorers of these models is noted: of one GPU, or of a scorer that has a
    part of one or none."""
    gpus = cluster.score.gpus_per_actor
    return SpeedNote(
        storage,
        stage="score",
        parameters=max(model.parameters() for model in models),
        precision=cluster.precision,
        cluster=cluster.name,
        gpus=gpus if gpus is None else min(1, gpus),
    )


def check_weights(targets: Targets, samples: int, storage: Storage) -> None:
    """Raises UserError where samples lack the scores of a model whose weights are not here."""
    for target in targets:
        line = weights_wanted(target.name, target.model, samples, storage)
        require(target.model.known_from is None, line)


def _plan(
    config: Config,
    pool: Pool,
    stores: Sequence[ScoreStore],
    storage: Storage,
    progress: Progress,
) -> tuple[list[ScorePass], float]:
    """The passes, and the GPUs of each actor; no machine is asked for where nothing is to do."""
    passes = plan_passes(pool, stores, MOST_MODELS)
    if not passes:
        return [], 0
    for scoring_pass in passes:
        check_weights(scoring_pass.targets, scoring_pass.samples, storage)
    require_gpus(config.cluster, "score")
    models = [target.model for scoring_pass in passes for target in scoring_pass.targets]
    placement = place(config.cluster, models, config.calibrate.max_length)
    if placement.note:
        progress.say(placement.note)
    if placement.models < MOST_MODELS:
        passes = plan_passes(pool, stores, placement.models)
    return passes, placement.gpus


def _gather(pool: Pool, store: ScoreStore) -> FinishedArtifact:
    with store.artifact.writer() as writer:
        gather(pool, store.shards, store.spec.encoding.measures, writer.folder)
        info = {"samples": len(pool), "partitions": pool.partitions}
        return writer.finish(store.key_inputs, info)


def _add_pieces(receipt: pa.Table, targets: Targets, folds: BackgroundFolds) -> None:
    for pieces in receipt["pieces"].to_pylist():
        for target, piece in zip(targets, pieces, strict=True):
            folds.add(target.shards, piece["name"], piece["size"])


def _account(
    receipt: pa.Table,
    targets: Targets,
    rejected: dict[EncoderSpec, Counter[str]],
    stats: ScoringStats,
    stage: Stage,
) -> Throughput:
    """Counts what was done, and the reasons of the samples that could not be scored."""
    groups, total = by_encoding(targets), Throughput()
    for row in receipt.to_pylist():
        for encoding, samples, reasons in zip(groups, row["samples"], row["rejected"], strict=True):
            rejected[encoding].update(reasons)
            for target in groups[encoding]:
                stats.add_samples(target.name, samples)
                SCORED_SAMPLES.add(samples, model=target.name)
                for reason, count in Counter(reasons).items():
                    REJECTED_SAMPLES.add(count, stage="score", model=target.name, reason=reason)
        for target, description, tokens in zip(
            targets, row["forward_passes"], row["tokens"], strict=True
        ):
            stats.add_forward_pass(target.name, description)
            SCORED_TOKENS.add(tokens, model=target.name)
        throughput = Throughput(**row["throughput"])
        stats.throughput.add(throughput)
        SCORER_SECONDS.add(throughput.busy_s, state="busy")
        SCORER_SECONDS.add(throughput.waited_s, state="waiting")
        total.add(throughput)
        speed = (stage.work + throughput.tokens) / max(stage.elapsed(), 1e-9)
        stage.add(max(row["samples"]), work=throughput.tokens, note=f"{speed:,.0f} tokens/s")
    return total
