"""Score: the pool under one or several models, with Ray Data.

Two kinds of things are kept. *Pieces* belong to a scorer (model, rendering, precision) and hold the
scores of a batch of samples each; they appear whole, while the job runs, and serve whatever pool
holds these samples: a job that died goes on, a pool that grew scores only what is new. From them
the *scores* artifact is gathered: one row for each sample of one pool, in the order of its index,
complete, or not there at all.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.data import ActorPoolStrategy

from instructdiff_ray.blocks import KILLS_SCORER, OUT_OF_MEMORY
from instructdiff_ray.buckets import id_array, id_prefixes
from instructdiff_ray.config import Config
from instructdiff_ray.models import Model
from instructdiff_ray.pieces import aligned, gather, piece_schema, read_pieces, write_pieces
from instructdiff_ray.pool import Pool, among, check_rejects, of_domain, read_pool, stream
from instructdiff_ray.progress import Progress, Stage
from instructdiff_ray.rendering import Rendering
from instructdiff_ray.samples import Part, Reject
from instructdiff_ray.scorer import Scorer
from instructdiff_ray.storage import Artifact, Finished, Folder, Storage, make_key
from instructdiff_ray.template import Encoded
from instructdiff_ray.throughput import Usage
from instructdiff_ray.watch import start_watch

VERSION = 2  # of what this stage computes; raise it when the same input gives other scores
NOTHING = Encoded([], [], [], False)
ROWS_PER_BATCH = 1024  # sorted by length together, and written as one piece


@dataclass
class Work:
    """What scoring cost in this command.

    samples: forward passes by role; usage: of all scorers.
    """

    samples: dict[str, int] = field(default_factory=lambda: {"base": 0, "calibrated": 0})
    usage: Usage = field(default_factory=Usage)

    @property
    def tokens(self) -> int:
        """Prompt and response, counted once for each model."""
        return round(self.usage.tokens)


@dataclass(frozen=True)
class Forward:
    """A pass over the pool: a model, and what it is shown of each sample.

    model: one for all samples, or by domain.
    """

    model: Model | Mapping[str, Model]
    rendering: Rendering

    def domains(self) -> list[str | None]:
        """Those that have a model of their own; [None] where all have the same."""
        return [None] if isinstance(self.model, Model) else list(self.model)

    def model_of(self, domain: str | None) -> Model:
        if isinstance(self.model, Model):
            return self.model
        assert domain is not None
        return self.model[domain]


def whole(config: Config, base: Model, **others: Model | Mapping[str, Model]) -> dict[str, Forward]:
    """Models that are shown whole samples, as the base model's tokenizer reads them."""
    rendering = Rendering.of(config, base)
    return {role: Forward(model, rendering) for role, model in {"base": base, **others}.items()}


@dataclass(frozen=True)
class Place:
    """Where the scores of one forward pass over one pool are or will be.

    inputs: what the artifact's key is made of; pieces: by domain, where its scorers' pieces are.
    """

    artifact: Artifact
    inputs: dict[str, Any]
    pieces: dict[str | None, Folder]

    def pieces_of(self, domain: str | None) -> Folder:
        return self.pieces[domain if domain in self.pieces else None]


@dataclass(frozen=True)
class Pass:
    """Samples that the same models lack. prefixes: of their ids, sorted; None: the whole pool.

    domain: that all are of, where domains have models of their own; else None.
    """

    roles: list[str]
    domain: str | None
    rendering: Rendering
    prefixes: np.ndarray | None
    tokens: int


def _places(
    config: Config, pool: Pool, forwards: Mapping[str, Forward], storage: Storage
) -> dict[str, Place]:
    places = {}
    for role, forward in forwards.items():
        scorers = {
            domain: {
                "version": VERSION,
                "model": forward.model_of(domain).identity,
                "precision": config.cluster.precision,
                "rendering": forward.rendering.inputs(),
            }
            for domain in forward.domains()
        }
        scorer = scorers.get(None) or {str(domain): one for domain, one in scorers.items()}
        inputs = {"scorer": scorer, "pool": pool.digest}
        pieces = {
            domain: storage.folder("pieces", make_key(**one)) for domain, one in scorers.items()
        }
        places[role] = Place(storage.artifact("scores", make_key(**inputs)), inputs, pieces)
    return places


def scores_keys(
    config: Config, pool: Pool, forwards: Mapping[str, Forward], storage: Storage
) -> dict[str, str]:
    """Key of each role's scores, as `<role>_scores`."""
    places = _places(config, pool, forwards, storage)
    return {f"{role}_scores": place.artifact.key for role, place in places.items()}


def finished_scores(
    config: Config, pool: Pool, forwards: Mapping[str, Forward], storage: Storage
) -> dict[str, Finished]:
    """The scores by role, from storage; UserError where they were not computed yet."""
    places = _places(config, pool, forwards, storage)
    return {
        role: place.artifact.require(f"the {role} scores", "run jobs/score.py first")
        for role, place in places.items()
    }


def score(
    config: Config,
    pool: Pool,
    forwards: Mapping[str, Forward],
    storage: Storage,
    progress: Progress,
    work: Work,
) -> dict[str, Finished]:
    """Scores of the pool by role, one for each forward pass.

    Each holds `scores.parquet`: a row for each sample, in the order of the pool's index. What is in
    storage is not computed again; models that are shown the same and lack the same samples share
    their batches. `work` is added to. Raises UserError where too many samples are rejected.
    """
    places = _places(config, pool, forwards, storage)
    # Two roles may be the same model and the same rendering.
    first = {place.artifact.key: role for role, place in reversed(places.items())}
    with ExitStack() as turns:
        # All runs take their turns in one order, so that no two wait for each other.
        missing = [
            role
            for _, role in sorted(first.items())
            if turns.enter_context(places[role].artifact.turn(progress.say)) is None
        ]
        if missing:
            _compute(config, pool, forwards, places, missing, progress, work)
    return finished_scores(config, pool, forwards, storage)


def _compute(
    config: Config,
    pool: Pool,
    forwards: Mapping[str, Forward],
    places: Mapping[str, Place],
    missing: Sequence[str],
    progress: Progress,
    work: Work,
) -> None:
    """The scores of the missing roles: forward passes for what no piece holds, then gathered."""
    passes = [
        one
        for rendering in dict.fromkeys(forwards[role].rendering for role in missing)
        for one in _find_shared(pool, rendering, missing, forwards, places)
    ]
    total = sum(one.tokens * len(one.roles) for one in passes)
    rejected: dict[Rendering, Counter[str]] = defaultdict(Counter)
    with progress.stage("score", "samples", total) as stage:
        for one in passes:
            targets = {
                role: (forwards[role].model_of(one.domain), places[role].pieces_of(one.domain))
                for role in one.roles
            }
            for receipt in score_blocks(config, pool, targets, one.rendering, one.prefixes):
                rejected[one.rendering].update(_account(receipt, one.roles, work, stage))
                if one.rendering.form == "whole":  # of another form, the selection needs it or not
                    limit = config.data.max_reject_ratio
                    check_rejects(pool, limit, rejected[one.rendering])
    for role in missing:
        place, measures = places[role], forwards[role].rendering.measures
        with place.artifact.attempt() as attempt:
            gather(pool, place.pieces, measures, attempt.folder)
            attempt.finish(place.inputs, {"samples": len(pool)})


def _find_shared(
    pool: Pool,
    rendering: Rendering,
    missing: Sequence[str],
    forwards: Mapping[str, Forward],
    places: Mapping[str, Place],
) -> list[Pass]:
    roles = [role for role in missing if forwards[role].rendering == rendering]
    domains = {domain: None for role in roles for domain in forwards[role].domains()}
    if len(domains) > 1:
        domains.pop(None, None)
    passes = []
    for domain in domains:
        pieces = {role: places[role].pieces_of(domain) for role in roles}
        passes += find_passes(pool, rendering, pieces, domain)
    return passes


def find_passes(
    pool: Pool, rendering: Rendering, pieces: Mapping[str, Folder], domain: str | None = None
) -> list[Pass]:
    """What each model lacks, of a domain or of all, grouped so that models that lack the same
    samples share a pass."""
    roles, schema = list(pieces), piece_schema(rendering.measures)
    # About what will be read; a question for a rating is a little longer than the sample.
    length = "response_tokens" if rendering.form == "response" else "tokens"
    prefixes, tokens, samples = defaultdict(list), Counter[int](), Counter[int]()
    with ExitStack() as stack:
        scored = [stack.enter_context(read_pieces(pieces[role], schema)) for role in roles]
        for index, *found in aligned(pool, *scored):
            ids, starts, lengths = id_array(index), id_prefixes(index), index[length].to_numpy()
            # What ended with a machine is tried again: this one may be larger.
            settled = [rows.filter(pc.invert(_of_machine(rows))) for rows in found]
            lacks = [~among(ids, np.sort(id_array(rows))) for rows in settled]
            codes = sum(mask.astype(int) << bit for bit, mask in enumerate(lacks))
            if domain is not None:
                codes = np.where(of_domain(index, domain), codes, 0)
            for code in range(1, 1 << len(roles)):
                mask = np.asarray(codes == code)
                prefixes[code].append(starts[mask])
                tokens[code] += int(lengths[mask].sum())
                samples[code] += int(mask.sum())
    return [
        Pass(
            [role for bit, role in enumerate(roles) if code >> bit & 1],
            domain,
            rendering,
            None if count == len(pool) and pool.split is None else np.concatenate(prefixes[code]),
            tokens[code],
        )
        for code, count in samples.items()
        if count
    ]


def _of_machine(rows: pa.Table) -> pa.Array:
    reasons = pa.array([KILLS_SCORER, OUT_OF_MEMORY])
    return pc.is_in(rows["reason"], value_set=reasons)


def score_blocks(
    config: Config,
    pool: Pool,
    targets: Mapping[str, tuple[Model, Folder]],
    rendering: Rendering,
    subset: np.ndarray | None,
) -> Iterator[pa.Table]:
    """The Ray Data pipeline: read → tokenise → score → write pieces; yields a receipt a block.

    targets: by role, a model and the folder of its pieces; subset: as in Tokenize.
    """
    resources = config.cluster.score
    tokenize = Tokenize(rendering, None if subset is None else ray.put(subset))
    dataset = (
        read_pool(pool, ["sample_id", "parts"])
        .map_batches(tokenize, batch_size=None, batch_format="pyarrow")
        # Ends the tokenising stage: only a strict repartition keeps Ray from fusing it into the
        # scoring actors, where a GPU would wait for it.
        .repartition(target_num_rows_per_block=ROWS_PER_BATCH, strict=True)
        .map_batches(
            Scorer,
            fn_constructor_kwargs={
                "models": {role: model for role, (model, _) in targets.items()},
                "measures": rendering.measures,
                "rating_tokens": rendering.rating_tokens(),
                "precision": config.cluster.precision,
                "tokens_per_batch": resources.tokens_per_batch,
                "actors_per_node": resources.max_actors,
                "gpus": resources.gpus_per_actor,
                "watch": start_watch(),
            },
            batch_size=ROWS_PER_BATCH,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(min_size=resources.min_actors, max_size=resources.max_actors),
            num_cpus=1,
            num_gpus=resources.gpus_per_actor or None,
            # A scorer that dies is started again and gets its block again, and the watch sees to it
            # that this ends.
            max_restarts=-1,
            max_task_retries=-1,
        )
        .map_batches(
            WritePieces(
                {role: folder for role, (_, folder) in targets.items()}, rendering.measures
            ),
            batch_size=None,
            batch_format="pyarrow",
        )
    )
    return stream(dataset)


class Tokenize:
    """Pool rows to blocks of tokens (blocks.py); keeps those of `subset` (None: all).

    subset: a reference to the sorted prefixes of ids; of two samples that share one, both are kept.
    """

    def __init__(self, rendering: Rendering, subset: Any) -> None:
        self.rendering = rendering
        self.subset = subset

    def __call__(self, batch: pa.Table) -> pa.Table:
        if self.subset is not None:
            wanted = among(id_prefixes(batch), ray.get(self.subset))
            batch = batch.filter(pa.array(wanted))
        samples = [[Part(**part) for part in parts] for parts in batch["parts"].to_pylist()]
        encoded = self.rendering.encode(samples)
        rejects = [item if isinstance(item, Reject) else None for item in encoded]
        # All were encoded at ingest; in another form, or by another tokenizer, some may not be.
        tokens = [item if isinstance(item, Encoded) else NOTHING for item in encoded]
        return pa.table(
            {
                "sample_id": batch["sample_id"],
                "input_ids": pa.array([e.input_ids for e in tokens], pa.list_(pa.int32())),
                "response": pa.array([e.response for e in tokens], pa.list_(pa.bool_())),
                "reason": pa.array([r and r.reason for r in rejects], pa.string()),
                "detail": pa.array([r and r.detail for r in rejects], pa.string()),
            }
        )


class WritePieces:
    """Writes a block of scores as pieces of each model; gives the receipt, one row."""

    def __init__(self, folders: Mapping[str, Folder], measures: Sequence[str]) -> None:
        self.folders = folders
        self.schema = piece_schema(measures)

    def __call__(self, scores: pa.Table) -> pa.Table:
        reasons: list[str | None] = [None] * scores.num_rows
        for role, folder in self.folders.items():
            columns = [scores["sample_id"], scores["response_tokens"]]
            columns += [scores[f"{role}_{name}"] for name in self.schema.names[2:]]
            write_pieces(folder, pa.table(columns, schema=self.schema))
            told = scores[f"{role}_reason"].to_pylist()
            reasons = [a or b for a, b in zip(reasons, told, strict=True)]
        rejected = [reason for reason in reasons if reason]
        return pa.table(
            {
                "samples": [scores.num_rows - len(rejected)],
                "rejected": pa.array([rejected], pa.list_(pa.string())),
                "usage": [{f.name: pc.sum(scores[f.name]).as_py() for f in fields(Usage)}],
            }
        )


def _account(receipt: pa.Table, roles: Sequence[str], work: Work, stage: Stage) -> list[str]:
    """Counts what was done; gives the reasons of the samples that could not be scored."""
    rejected = []
    for row in receipt.to_pylist():
        for role in roles:
            work.samples[role] = work.samples.get(role, 0) + row["samples"]
        usage = Usage(**row["usage"])
        work.usage.add(usage)
        rejected += row["rejected"]
        speed = (stage.work + usage.tokens) / max(stage.elapsed(), 1e-9)
        stage.add(row["samples"], work=usage.tokens, note=f"{speed:,.0f} tokens/s")
    return rejected
