"""The scores of each token of a few samples, for people to look at.

Scoring keeps means alone. What the report shows is read once more, by both models, in one Ray task;
the result is an artifact. The mean over a sample's tokens is its score.
"""

from __future__ import annotations

import gc
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from instructdiff_ray.config.cluster import ClusterConfig
from instructdiff_ray.engine.batch import Batch
from instructdiff_ray.models.encoding import EncoderSpec
from instructdiff_ray.models.template import Encoded, Rendered, Span
from instructdiff_ray.pool.tasks import results
from instructdiff_ray.progress import Progress
from instructdiff_ray.resources import machines_for
from instructdiff_ray.sample import Part
from instructdiff_ray.scoring.actor import load_scorers, scoring_device
from instructdiff_ray.scoring.placement import gpus_of_one
from instructdiff_ray.scoring.plan import Targets, targets_of
from instructdiff_ray.scoring.store import ScoreStore
from instructdiff_ray.storage.artifacts import Storage, make_key

VERSION = 1  # of what the artifact holds
TABLE = "tokens.parquet"


@dataclass(frozen=True)
class ShownSample:
    """A sample whose tokens are wanted."""

    sample_id: str
    domain: str
    parts: Sequence[Part]


@dataclass(frozen=True)
class TokenScores:
    """The scored tokens of one sample, all lists with one entry a token.

    responses: the text of each response; turn: the response that a token belongs to; start, end:
        its characters in it, the same of tokens that share a character.
    measures: `base_nll`, `base_entropy`, `calibrated_nll`, `calibrated_entropy`, in nats.
    """

    responses: list[str]
    turn: list[int]
    start: list[int]
    end: list[int]
    measures: dict[str, list[float]]


Group = tuple[Targets, Sequence[ShownSample]]


def score_tokens(
    cluster: ClusterConfig,
    stores: Sequence[ScoreStore],
    samples: Sequence[ShownSample],
    storage: Storage,
    progress: Progress,
    build: bool = True,
) -> dict[str, TokenScores]:
    """The token scores of these samples by id, from storage where they are there.

    stores: of the scores `base` and `calibrated`. Nothing is given where the artifact is absent and
    `build` is False, or no machine has the GPU that scoring is configured for: a report is not
    worth waiting for one.
    """
    groups = _by_models(stores, samples)
    inputs = {
        "version": VERSION,
        # The name of a folder of shards stands for model, encoding and precision.
        "scorers": [[t.shards.path.rsplit("/", 1)[-1] for t in targets] for targets, _ in groups],
        "samples": [[sample.sample_id for sample in group] for _, group in groups],
    }
    artifact = storage.artifact("tokens", make_key(**inputs))
    finished = artifact.finished()
    if finished is None:
        if not build or ray.cluster_resources().get("GPU", 0) < cluster.score.least_gpus:
            return {}
        with artifact.lock(progress.say) as finished:
            if finished is None:
                with progress.stage("token view", "samples") as stage, artifact.writer() as writer:
                    writer.folder.write_table(TABLE, _run(cluster, groups))
                    finished = writer.finish(inputs, {"samples": len(samples)})
                    stage.add(len(samples))
    rows = finished.folder.read_table(TABLE).to_pylist()
    return {row.pop("sample_id"): _token_scores(row) for row in rows}


def _token_scores(row: dict[str, Any]) -> TokenScores:
    where = {name: row.pop(name) for name in ("responses", "turn", "start", "end")}
    return TokenScores(**where, measures=row)


def _by_models(stores: Sequence[ScoreStore], samples: Sequence[ShownSample]) -> list[Group]:
    """The samples, sorted by id, with the models that score them."""
    by_domain: dict[str | None, list[ShownSample]] = defaultdict(list)
    shared = all(None in store.shards for store in stores)
    for sample in sorted(samples, key=lambda sample: sample.sample_id):
        by_domain[None if shared else sample.domain].append(sample)
    return [(targets_of(stores, domain), group) for domain, group in by_domain.items()]


def _run(cluster: ClusterConfig, groups: Sequence[Group]) -> pa.Table:
    targets = [target for targets, _ in groups for target in targets]
    longest = max(target.encoding.max_length for target in targets)
    gpus = gpus_of_one(cluster, [target.model for target in targets], longest)
    # One call a process: what it holds of memory and of a GPU is free again when it is done.
    task = ray.remote(num_cpus=1, num_gpus=gpus, max_calls=1, label_selector=machines_for(gpus))(
        read_tokens
    )
    (table,) = results([task.remote(groups, cluster.precision, gpus)])
    assert isinstance(table, pa.Table)
    return table


def read_tokens(groups: Sequence[Group], precision: str, gpus: float) -> pa.Table:
    """A row for each sample: its id and the fields of TokenScores."""
    device = scoring_device(1, gpus, precision)
    rows = []
    for targets, samples in groups:
        encoding = targets[0].encoding
        of_group = [_located(encoding, sample) for sample in samples]
        for target in targets:  # one at a time is in memory
            (scorers,) = load_scorers([target], precision, device, spread=gpus > 1)
            for row, encoded in of_group:
                batch = Batch.of([encoded.input_ids], [encoded.response], device)
                nll, entropy = scorers[target.name].score_tokens(batch).cpu().numpy()
                row |= {f"{target.name}_nll": nll, f"{target.name}_entropy": entropy}
            # Models over several GPUs are in circles, which only the collector finds.
            del scorers
            gc.collect()
        rows += [row for row, _ in of_group]
    return pa.Table.from_pylist(rows)


def _located(encoding: EncoderSpec, sample: ShownSample) -> tuple[dict[str, Any], Encoded]:
    """The sample's row without scores, and its tokens."""
    (encoded,) = encoding.encode([sample.parts])
    assert isinstance(encoded, Encoded), "it has scores"
    rendered, spans = encoding.encoder().locate(sample.parts)
    return {"sample_id": sample.sample_id, **places(rendered, spans, encoded.response)}, encoded


def places(rendered: Rendered, spans: Sequence[Span], response: Sequence[bool]) -> dict[str, Any]:
    """`responses`, `turn`, `start` and `end` of TokenScores."""
    turns, starts, ends = [], [], []
    last_characters = [end for _, end in rendered.responses]
    for position in np.flatnonzero(response).tolist():
        start, end = spans[position]
        # A token may begin before its response, where the tokenizer merges across the border.
        turn = next(n for n, last in enumerate(last_characters) if start < last or end <= last)
        first, last = rendered.responses[turn]
        turns.append(turn)
        starts.append(max(start, first) - first)
        ends.append(min(end, last) - first)
    responses = [rendered.text[start:end] for start, end in rendered.responses]
    return {"responses": responses, "turn": turns, "start": starts, "end": ends}
