"""What is still to be scored: passes over the pool, each with samples that lack the same scores."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import ray

from instructdiff_ray.models.encoding import EncoderSpec
from instructdiff_ray.models.model import Model
from instructdiff_ray.pool.partition import among, id_array, id_prefixes
from instructdiff_ray.pool.pool import Pool, of_domain
from instructdiff_ray.pool.tasks import task
from instructdiff_ray.scoring.scored_rows import ScoredRows, scan, steadily
from instructdiff_ray.scoring.shards import of_machine
from instructdiff_ray.scoring.store import ScoreStore
from instructdiff_ray.storage.filesystem import Folder

# What says whether a sample needs to be scored.
DONE = ["sample_id", "reason"]
Pattern = tuple[bool, ...]  # of each target, whether samples lack it


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

    prefixes: a reference to those of the samples' ids, sorted; None: the whole pool.
    tokens: about how many are read, for all targets together; samples: how many are scored.
    """

    targets: list[ScoreTarget]
    prefixes: ray.ObjectRef | None
    tokens: int
    samples: int


def plan_passes(pool: Pool, stores: Sequence[ScoreStore], most_models: int) -> list[ScorePass]:
    """The passes that complete these scores, by scorers that hold the weights of so many models.

    Where domains have models of their own, each domain is passed over by itself; but scores that
    need none of these models are computed once, for all domains.
    """
    return [
        lacking
        for domain, targets in _groups(stores, most_models)
        for lacking in find_lacking(pool, targets, domain)
    ]


def count_lacking(
    pool: Pool, stores: Sequence[ScoreStore], most_models: int
) -> list[tuple[Targets, Lacking]]:
    """The targets of each such pass, and what its samples lack of them: counted by this process,
    in what is in storage as it is. Nothing is written."""
    counts: list[tuple[Targets, Lacking]] = []
    for domain, targets in _groups(stores, most_models):
        folders = [target.shards for target in targets]
        count = partial(_count_in_place, pool, targets, domain)
        for pattern, lacking in steadily(count, folders).items():
            lacked = [target for target, missing in zip(targets, pattern, strict=True) if missing]
            counts.append((lacked, lacking))
    return counts


def _groups(
    stores: Sequence[ScoreStore], most_models: int
) -> list[tuple[str | None, tuple[ScoreTarget, ...]]]:
    """The targets that share passes, each with the domain that is passed over (None: all)."""
    domains: list[str | None] = list(
        dict.fromkeys(d for store in stores for d in store.spec.domains() if d)
    )
    of_domains = {store.spec.name for store in stores if None not in store.shards}
    groups: dict[tuple[str | None, tuple[ScoreTarget, ...]], None] = {}
    for domain in domains or [None]:
        for targets in _sharing_models(targets_of(stores, domain), most_models):
            needs_domain = any(target.name in of_domains for target in targets)
            groups[domain if needs_domain else None, tuple(targets)] = None
    return [*groups]


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
    prefixes: list[ray.ObjectRef] = []  # of each partition, by pattern

    def start(scored: Sequence[ScoredRows]) -> list[ray.ObjectRef]:
        prefixes.clear()
        find = task(_lacking_in_partition, outputs=2)
        lengths = [length_column(target.encoding) for target in targets]
        of_targets, counts = ray.put([*scored]), []
        for number in range(pool.partitions):
            of_partition = find(number, pool, of_targets, lengths, domain)
            counts.append(of_partition[0])
            prefixes.append(of_partition[1])
        return counts

    lacking = _added_up(scan(pool, [target.shards for target in targets], start))
    join = task(_join)
    return [
        ScorePass(
            [target for target, missing in zip(targets, pattern, strict=True) if missing],
            None
            if lacking[pattern].samples == len(pool) and pool.split is None
            else join(pattern, *prefixes),
            lacking[pattern].tokens,
            lacking[pattern].samples,
        )
        for pattern in sorted(lacking, key=lambda pattern: pattern[::-1])
    ]


class Lacking(NamedTuple):
    """How many samples lack the same scores, and about how many tokens are to be read of them."""

    samples: int
    tokens: int


def _added_up(parts: Iterable[Mapping[Pattern, Lacking]]) -> dict[Pattern, Lacking]:
    lacking: dict[Pattern, Lacking] = {}
    for part in parts:
        for pattern, (samples, tokens) in part.items():
            before = lacking.get(pattern, Lacking(0, 0))
            lacking[pattern] = Lacking(before.samples + samples, before.tokens + tokens)
    return lacking


def _count_in_place(pool: Pool, targets: Targets, domain: str | None) -> dict[Pattern, Lacking]:
    scored = [ScoredRows.unfolded(pool, target.shards, DONE) for target in targets]
    lengths = [length_column(target.encoding) for target in targets]
    return _added_up(
        _lacking_in_partition(number, pool, scored, lengths, domain)[0]
        for number in range(pool.partitions)
    )


def _lacking_in_partition(
    number: int,
    pool: Pool,
    scored: Sequence[ScoredRows],
    lengths: Sequence[str],
    domain: str | None,
) -> tuple[dict[Pattern, Lacking], dict[Pattern, np.ndarray]]:
    """What samples of the partition lack, and the sorted prefixes of their ids. lengths: of each
    target, the column of the index that says how many tokens it reads."""
    index = pool.read_partition(number, sorted({*lengths, "sample_id", "domain"}))
    ids, prefixes = id_array(index), id_prefixes(index)
    tables = [shards.read(ids, number, pool.partitions, DONE) for shards in scored]
    lacks = np.stack([~among(ids, _done(table)) for table in tables], axis=1)
    if domain is not None:
        lacks &= of_domain(index, domain)[:, None]
    tokens = np.stack([index[name].to_numpy() for name in lengths], axis=1)
    counts, of_pattern = {}, {}
    for row in np.unique(lacks[lacks.any(axis=1)], axis=0):
        rows, pattern = (lacks == row).all(axis=1), tuple(row.tolist())
        counts[pattern] = Lacking(int(rows.sum()), int(tokens[rows][:, row].sum()))
        of_pattern[pattern] = prefixes[rows]
    return counts, of_pattern


def _join(pattern: Pattern, *parts: dict[Pattern, np.ndarray]) -> np.ndarray:
    return np.concatenate([part[pattern] for part in parts if pattern in part])


def _done(rows: pa.Table | None) -> np.ndarray:
    """The sorted ids of what is scored, or rejected for good."""
    if rows is None:
        return np.array([], dtype="S")
    return np.sort(id_array(rows)[~of_machine(rows)])


def length_column(encoding: EncoderSpec) -> str:
    """The column of the index that says about how many tokens are read of a sample: a question for
    a rating is a little longer than the sample."""
    return "response_tokens" if encoding.form == "response" else "tokens"
