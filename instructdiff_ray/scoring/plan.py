"""What is still to be scored: passes over the pool, each with samples that lack the same scores."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from instructdiff_ray.models.encoding import EncoderSpec
from instructdiff_ray.models.model import Model
from instructdiff_ray.pool.partition import among, id_array, id_prefixes
from instructdiff_ray.pool.pool import Pool, of_domain
from instructdiff_ray.scoring.blocks import KILLS_SCORER, OUT_OF_MEMORY
from instructdiff_ray.scoring.store import ScoreStore, aligned, read_shards
from instructdiff_ray.storage.filesystem import Folder

# What a shard says of whether a sample needs to be scored.
DONE = pa.schema([("sample_id", pa.string()), ("reason", pa.string())])


@dataclass(frozen=True)
class ScoreTarget:
    """Scores to compute: by this model, of samples in this form, written to these shards."""

    name: str
    model: Model
    encoding: EncoderSpec
    shards: Folder


Targets = Sequence[ScoreTarget]


def by_encoding(targets: Targets) -> dict[EncoderSpec, list[ScoreTarget]]:
    """The targets that read samples in the same form, and so share their batches."""
    groups: dict[EncoderSpec, list[ScoreTarget]] = defaultdict(list)
    for target in targets:
        groups[target.encoding].append(target)
    return dict(groups)


@dataclass(frozen=True)
class ScorePass:
    """One pass over samples that lack the same scores.

    prefixes: of the samples' ids, sorted; None: the whole pool.
    tokens: about how many are read, for all targets together.
    """

    targets: list[ScoreTarget]
    prefixes: np.ndarray | None
    tokens: int


def plan_passes(pool: Pool, stores: Sequence[ScoreStore], most_models: int) -> list[ScorePass]:
    """The passes that complete these scores, by scorers that hold the weights of so many models.

    Where domains have models of their own, each domain is passed over by itself; but scores that
    need none of these models are computed once, for all domains.
    """
    domains: list[str | None] = list(
        dict.fromkeys(d for store in stores for d in store.spec.domains() if d)
    )
    of_domains = {store.spec.name for store in stores if None not in store.shards}
    groups: dict[tuple[str | None, tuple[ScoreTarget, ...]], None] = {}
    for domain in domains or [None]:
        for targets in _sharing_models(targets_of(stores, domain), most_models):
            needs_domain = any(target.name in of_domains for target in targets)
            groups[domain if needs_domain else None, tuple(targets)] = None
    return [
        lacking for domain, targets in groups for lacking in find_lacking(pool, targets, domain)
    ]


def targets_of(stores: Sequence[ScoreStore], domain: str | None) -> list[ScoreTarget]:
    """A target for each store, with the models of this domain."""
    return [
        ScoreTarget(
            store.spec.name,
            store.spec.model_of(domain),
            store.spec.encoding,
            store.shards_of(domain),
        )
        for store in stores
    ]


def _sharing_models(targets: Targets, most_models: int) -> list[list[ScoreTarget]]:
    """Targets in groups, each for one kind of scorer: an encoding whose models all belong to the
    scorers of another goes along with it, and one of more models than fit is split."""

    def models(group: Targets) -> set[str]:
        return {target.model.identity for target in group}

    groups: list[list[ScoreTarget]] = []
    held: list[set[str]] = []  # by the scorers of each group
    fitting = [
        part for group in by_encoding(targets).values() for part in _fitting(group, most_models)
    ]
    for group in sorted(fitting, key=lambda group: -len(models(group))):
        number = next((n for n, others in enumerate(held) if models(group) <= others), None)
        if number is None:
            groups.append(group)
            held.append(models(group))
        else:
            groups[number] += group
    return groups


def _fitting(group: Targets, most_models: int) -> list[list[ScoreTarget]]:
    """The targets in parts whose weights fit one scorer; adapters go with their base model's."""
    places = {path: n for n, path in enumerate(dict.fromkeys(t.model.path for t in group))}
    parts: dict[int, list[ScoreTarget]] = defaultdict(list)
    for target in group:
        parts[places[target.model.path] // most_models].append(target)
    return list(parts.values())


def find_lacking(pool: Pool, targets: Targets, domain: str | None = None) -> list[ScorePass]:
    """A pass for each set of targets that some samples, of one domain or of all, lack."""
    prefixes = defaultdict(list)
    samples, tokens = Counter[tuple[bool, ...]](), Counter[tuple[bool, ...]]()
    with ExitStack() as stack:
        shards = [stack.enter_context(read_shards(target.shards, DONE)) for target in targets]
        for index, *tables in aligned(pool, *shards):
            lacks = _lacks(index, tables, domain)
            columns = [index[length_column(target.encoding)] for target in targets]
            lengths = np.stack([column.to_numpy() for column in columns], axis=1)
            for pattern in np.unique(lacks[lacks.any(axis=1)], axis=0):
                rows = (lacks == pattern).all(axis=1)
                lacking = tuple(pattern.tolist())
                prefixes[lacking].append(id_prefixes(index)[rows])
                samples[lacking] += int(rows.sum())
                tokens[lacking] += int(lengths[rows][:, pattern].sum())
    return [
        ScorePass(
            [target for target, missing in zip(targets, lacking, strict=True) if missing],
            None
            if samples[lacking] == len(pool) and pool.split is None
            else np.concatenate(prefixes[lacking]),
            tokens[lacking],
        )
        for lacking in sorted(samples, key=lambda lacking: lacking[::-1])
    ]


def _lacks(index: pa.Table, scored: Sequence[pa.Table], domain: str | None) -> np.ndarray:
    """[samples, targets]: whether a sample of the domain needs a target's score."""
    ids = id_array(index)
    # What ended with a machine is tried again: this one may be larger.
    done = [np.sort(id_array(rows.filter(pc.invert(_of_machine(rows))))) for rows in scored]
    lacks = np.stack([~among(ids, known) for known in done], axis=1)
    return lacks if domain is None else lacks & of_domain(index, domain)[:, None]


def length_column(encoding: EncoderSpec) -> str:
    """The column of the index that says about how many tokens are read of a sample: a question for
    a rating is a little longer than the sample."""
    return "response_tokens" if encoding.form == "response" else "tokens"


def _of_machine(rows: pa.Table) -> pa.Array:
    reasons = pa.array([KILLS_SCORER, OUT_OF_MEMORY])
    return pc.is_in(rows["reason"], value_set=reasons)
