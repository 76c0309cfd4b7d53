"""A few pulled samples scored here, by the scorers that score a pool, and compared."""

from __future__ import annotations

import secrets
import uuid

import numpy as np
import pyarrow as pa
import ray

from instructdiff_ray.context import RunContext
from instructdiff_ray.errors import require
from instructdiff_ray.pool.partition import among, id_array, id_prefixes
from instructdiff_ray.pool.pool import Pool
from instructdiff_ray.pool.sampling import lowest_draws
from instructdiff_ray.resources import require_gpus
from instructdiff_ray.scoring.dataflow import score_blocks
from instructdiff_ray.scoring.placement import place
from instructdiff_ray.scoring.plan import ScorePass, ScoreTarget
from instructdiff_ray.scoring.shards import Shards, of_machine
from instructdiff_ray.sharing.checks import compare_scores
from instructdiff_ray.sharing.matching import Match
from instructdiff_ray.storage.artifacts import ATTEMPT, make_key
from instructdiff_ray.storage.filesystem import Folder


def recompute(context: RunContext, pool: Pool, match: Match, pulled: Folder, samples: int) -> str:
    """Score so many of the pulled samples here; gives a line that says what was compared. pulled:
    holds their rows. Raises UserError where a score is another one here."""
    name = match.spec.name
    if match.model.known_from:
        return f"{name} scores: not recomputed, for the weights of the calibrated model aren't here"
    drawn = draw_rows(pulled, samples)
    if not drawn.num_rows:
        return f"{name} scores: not recomputed, for all of them were here already"
    here = _score(context, pool, match, drawn)
    return agreement(name, drawn, here, context.config.cluster.precision)


def agreement(name: str, drawn: pa.Table, here: pa.Table, precision: str) -> str:
    """A line that says how many of the drawn rows are as they were computed here. Raises UserError
    where one is another, or this machine was too small for all of them."""
    count = compare_scores(name, drawn, here.filter(pa.array(~of_machine(here))), precision)
    require(
        count > 0,
        f"this machine is too small to score any of the {drawn.num_rows:,} samples that were drawn"
        f" of the {name} scores; give --recompute a larger number, or pull on a larger machine",
    )
    too_large = drawn.num_rows - count
    others = f"; for {too_large:,} others this machine is too small" if too_large else ""
    return f"{name} scores: {count:,} samples were scored here too, and agree{others}"


def draw_rows(pulled: Folder, samples: int) -> pa.Table:
    """So many rows, at random, in the order of their ids; that a sample can't be scored is looked
    at like its scores."""
    # Nobody who publishes scores can know beforehand which samples are looked at.
    key = secrets.token_hex(8)
    tables = [_lowest(pulled.read_table(name), samples, key) for name in sorted(pulled.sizes())]
    return _lowest(pa.concat_tables(tables), samples, key) if tables else pa.table({})


def _lowest(rows: pa.Table, samples: int, key: str) -> pa.Table:
    drawn = lowest_draws(rows["sample_id"].to_pylist(), samples, key)
    return rows.filter(pa.array(among(id_array(rows), np.array(sorted(drawn), "S"))))


def _score(context: RunContext, pool: Pool, match: Match, drawn: pa.Table) -> pa.Table:
    """The rows of these samples, scored here; what is written of them is deleted."""
    config, spec, model = context.config, match.spec, match.model
    require_gpus(config.cluster, "score")
    # An attempt at an artifact: `instructdiff clean` removes what a killed process leaves of it.
    artifact = context.storage.artifact("recomputed", make_key(draw=uuid.uuid4().hex))
    scratch = artifact.writer_at(f"{ATTEMPT}{uuid.uuid4().hex[:12]}").folder
    try:
        with context.progress.stage("recompute", "samples", drawn.num_rows) as stage:
            gpus = place(config.cluster, [model], spec.encoding.max_length).gpus
            target = ScoreTarget(spec.name, model, spec.encoding, scratch)
            prefixes = ray.put(np.sort(id_prefixes(drawn)))
            tokens = drawn.num_rows * spec.encoding.max_length
            scoring_pass = ScorePass([target], prefixes, tokens, drawn.num_rows)
            for receipt in score_blocks(config, pool, scoring_pass, gpus):
                stage.add(sum(map(sum, receipt["samples"].to_pylist())))
        return pa.concat_tables(scratch.read_table(name) for name in Shards(scratch).pieces)
    finally:
        artifact.home.delete()
