"""Score: the pool under one or two models, with Ray Data.

Two kinds of things are kept. *Pieces* belong to a scorer (model, rendering, precision) and hold the
scores of a batch of samples each; they appear whole, while the job runs, and serve whatever pool
holds these samples: a job that died goes on, a pool that grew scores only what is new. From them
the *scores* artifact is gathered: one row for each sample of one pool, in the order of its index,
complete and finite, or not there at all.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.data import ActorPoolStrategy

from instructdiff_ray.config import Config
from instructdiff_ray.models import Model
from instructdiff_ray.pool import Pool, among, id_array, read_pool, stream
from instructdiff_ray.progress import Progress, Stage
from instructdiff_ray.rendering import Rendering
from instructdiff_ray.samples import Part
from instructdiff_ray.scorer import Scorer
from instructdiff_ray.storage import Artifact, Finished, Folder, Storage, make_key
from instructdiff_ray.template import Encoded

VERSION = 1  # of what this stage computes; raise it when the same input gives other scores
ROWS_PER_BATCH = 1024  # sorted by length together, and written as one piece

PIECE = pa.schema(
    [
        ("sample_id", pa.string()),
        ("response_tokens", pa.int32()),
        ("nll", pa.float64()),
        ("entropy", pa.float64()),
    ]
)


@dataclass
class Work:
    """What scoring cost in this command.

    samples: forward passes by role; tokens: prompt and response, counted once for each model.
    """

    samples: dict[str, int] = field(default_factory=lambda: {"base": 0, "calibrated": 0})
    tokens: int = 0


@dataclass(frozen=True)
class Place:
    """Where the scores of one pool under one model are or will be.

    inputs: what the artifact's key is made of; pieces: where its scorer's pieces are.
    """

    artifact: Artifact
    inputs: dict[str, Any]
    pieces: Folder


def _places(
    config: Config, pool: Pool, models: Mapping[str, Model], storage: Storage
) -> dict[str, Place]:
    rendering = Rendering.of(config, models["base"])
    places = {}
    for role, model in models.items():
        scorer = {
            "version": VERSION,
            "model": model.identity,
            "precision": config.cluster.precision,
            "rendering": rendering.inputs(),
        }
        inputs = {"scorer": scorer, "pool": pool.digest}
        artifact = storage.artifact("scores", make_key(**inputs))
        places[role] = Place(artifact, inputs, storage.folder("pieces", make_key(**scorer)))
    return places


def scores_keys(
    config: Config, pool: Pool, models: Mapping[str, Model], storage: Storage
) -> dict[str, str]:
    """Key of each role's scores, as `<role>_scores`."""
    places = _places(config, pool, models, storage)
    return {f"{role}_scores": place.artifact.key for role, place in places.items()}


def finished_scores(
    config: Config, pool: Pool, models: Mapping[str, Model], storage: Storage
) -> dict[str, pa.Table]:
    """The scores by role, from storage; UserError where they were not computed yet."""
    places = _places(config, pool, models, storage)
    return {
        role: _read(place.artifact.require(f"the {role} scores", "run jobs/score.py first"))
        for role, place in places.items()
    }


def score(
    config: Config,
    pool: Pool,
    models: Mapping[str, Model],
    storage: Storage,
    progress: Progress,
    work: Work,
) -> dict[str, pa.Table]:
    """Scores of the pool under each model, by its role: `base`, `calibrated`.

    Each table has the columns of PIECE, a row for each sample, in the order of the pool's index.
    What is in storage is not computed again; models that lack the same samples share their passes.
    `work` is added to. Raises UserError where a score is not finite.
    """
    places = _places(config, pool, models, storage)
    missing = {role: p for role, p in places.items() if p.artifact.finished() is None}
    if missing:
        index = pool.index()
        ids = id_array(index)
        lacks = {role: ~among(ids, _scored_ids(p.pieces)) for role, p in missing.items()}
        tokens = index["tokens"].to_numpy()
        total = int(sum(tokens[mask].sum() for mask in lacks.values()))
        with progress.stage("score", "samples", total) as stage:
            for roles, wanted in _passes(lacks):
                targets = {role: (models[role], places[role].pieces) for role in roles}
                rendering = Rendering.of(config, models["base"])
                subset = None if wanted.all() else ids[wanted]
                for receipt in _run(config, pool, targets, rendering, subset):
                    _account(receipt, roles, work, stage)
        for place in missing.values():
            _gather(place, index)
    return finished_scores(config, pool, models, storage)


def _passes(lacks: Mapping[str, np.ndarray]) -> Iterator[tuple[list[str], np.ndarray]]:
    """Samples grouped by the models that lack them: (roles, mask over the index), none empty."""
    roles = list(lacks)
    codes = sum(lacks[role].astype(int) << bit for bit, role in enumerate(roles))
    for code in range(1, 1 << len(roles)):
        mask = np.asarray(codes == code)
        if mask.any():
            yield [role for bit, role in enumerate(roles) if code >> bit & 1], mask


def _run(
    config: Config,
    pool: Pool,
    targets: Mapping[str, tuple[Model, Folder]],
    rendering: Rendering,
    subset: np.ndarray | None,
) -> Iterator[pa.Table]:
    """The Ray Data pipeline: read → tokenise → score → write pieces; yields a receipt a piece."""
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
                "precision": config.cluster.precision,
                "tokens_per_batch": resources.tokens_per_batch,
                "actors_per_node": resources.max_actors,
                "gpu": resources.gpus_per_actor > 0,
            },
            batch_size=ROWS_PER_BATCH,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(min_size=resources.min_actors, max_size=resources.max_actors),
            num_cpus=1,
            num_gpus=resources.gpus_per_actor or None,
            # Without a bound, Ray starts the actor again for ever that a bad batch kills.
            max_restarts=3,
            max_task_retries=3,
        )
        .map_batches(
            WritePieces({role: folder for role, (_, folder) in targets.items()}),
            batch_size=None,
            batch_format="pyarrow",
        )
    )
    return stream(dataset)


class Tokenize:
    """Pool rows to (sample_id, input_ids, response); keeps the rows of `subset` (None: all)."""

    def __init__(self, rendering: Rendering, subset: Any) -> None:
        self.rendering = rendering
        self.subset = subset

    def __call__(self, batch: pa.Table) -> pa.Table:
        if self.subset is not None:
            wanted = among(id_array(batch), ray.get(self.subset))
            batch = batch.filter(pa.array(wanted))
        samples = [[Part(**part) for part in parts] for parts in batch["parts"].to_pylist()]
        encoded = self.rendering.encoder().encode(samples)
        kept = [item for item in encoded if isinstance(item, Encoded)]
        assert len(kept) == len(samples), "a pool row was encoded at ingest and is not now"
        return pa.table(
            {
                "sample_id": batch["sample_id"],
                "input_ids": pa.array([e.input_ids for e in kept], pa.list_(pa.int32())),
                "response": pa.array([e.response for e in kept], pa.list_(pa.bool_())),
            }
        )


class WritePieces:
    """Writes a block of scores as one piece for each model; gives the receipt, one row."""

    def __init__(self, folders: Mapping[str, Folder]) -> None:
        self.folders = folders

    def __call__(self, scores: pa.Table) -> pa.Table:
        name = f"piece-{uuid.uuid4().hex}.parquet"
        for role, folder in self.folders.items():
            columns = ["sample_id", "response_tokens", f"{role}_nll", f"{role}_entropy"]
            folder.write_table(name, scores.select(columns).rename_columns(PIECE.names))
        return pa.table(
            {
                "samples": [scores.num_rows],
                "tokens": [pc.sum(scores["tokens"]).as_py()],
            }
        )


def _account(receipt: pa.Table, roles: Sequence[str], work: Work, stage: Stage) -> None:
    samples, tokens = (pc.sum(column).as_py() for column in receipt.columns)
    for role in roles:
        work.samples[role] += samples
    work.tokens += tokens * len(roles)
    stage.add(samples, work=tokens * len(roles))
    stage.note = f"{stage.work / stage.elapsed():,.0f} tokens/s"


def _piece_tables(folder: Folder, columns: list[str]) -> list[pa.Table]:
    names = sorted(name for name in folder.sizes() if name.endswith(".parquet"))
    # Thousands of small files: in an object store each is a wait of its own.
    with ThreadPoolExecutor(32) as threads:
        return list(threads.map(lambda name: folder.read_table(name, columns), names))


def _scored_ids(folder: Folder) -> np.ndarray:
    tables = _piece_tables(folder, ["sample_id"])
    return np.unique(id_array(pa.concat_tables(tables))) if tables else np.array([], "S32")


def _gather(place: Place, index: pa.Table) -> None:
    """One row for each sample of the pool, in its index's order, from the pieces.

    Two runs at once may both have scored a sample: any of its rows is right, the least is taken, so
    that the choice does not depend on file names.
    """
    table = pa.concat_tables(_piece_tables(place.pieces, PIECE.names))
    ids = id_array(table)
    order = np.lexsort((table["entropy"].to_numpy(), table["nll"].to_numpy(), ids))
    unique, first = np.unique(ids[order], return_index=True)
    wanted = id_array(index)
    rows = np.minimum(np.searchsorted(unique, wanted), len(unique) - 1)
    found = unique[rows] == wanted
    assert found.all(), f"{(~found).sum()} samples have no score, first {wanted[~found][0]!r}"
    with place.artifact.attempt() as attempt:
        attempt.folder.write_table("scores.parquet", table.take(order[first[rows]]))
        attempt.finish(place.inputs, {"samples": len(wanted)})


def _read(finished: Finished) -> pa.Table:
    return finished.folder.read_table("scores.parquet")
