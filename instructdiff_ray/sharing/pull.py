"""Published scores into a storage: pinned, checked, and only then written where scorers write.

Everything is fetched and checked in a folder of this machine before anything counts. What is
written is a snapshot of the shards of its model, encoding and precision, as if it had been scored
here, with a note of where it comes from.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from instructdiff_ray.context import RunContext
from instructdiff_ray.errors import require
from instructdiff_ray.models.encoding import EncoderSpec
from instructdiff_ray.pipeline import ingest_pool
from instructdiff_ray.pool.partition import among, id_array, partition_file
from instructdiff_ray.pool.pool import Pool, of_domain
from instructdiff_ray.progress import Stage
from instructdiff_ray.scoring.origins import Origin, note_origin
from instructdiff_ray.scoring.scored_rows import ScoredRows, steadily
from instructdiff_ray.scoring.shards import (
    fold,
    of_machine,
    one_row_each,
    shard_schema,
    write_snapshot,
)
from instructdiff_ray.scoring.spec import SCORES
from instructdiff_ray.sharing.checks import (
    check_content,
    check_ids,
    check_lengths,
    check_unscored,
    check_values,
    compare_scores,
    read_scores,
)
from instructdiff_ray.sharing.matching import Match, check_models, check_pool, match_scores
from instructdiff_ray.sharing.publication import (
    MOST_BYTES,
    PUBLICATION,
    Publication,
    read_publication,
)
from instructdiff_ray.sharing.recompute import recompute
from instructdiff_ray.sharing.settings import shown
from instructdiff_ray.storage.filesystem import Folder
from instructdiff_ray.storage.hub import pin, read_contents
from instructdiff_ray.storage.hub_client import SCHEME, HubPath
from instructdiff_ray.training.known_models import note_training


@dataclass(frozen=True)
class Checked:
    """Scores that were fetched and checked.

    shards: where they belong; folder: on this machine, holds the rows to be written, a file for
    each of `partitions`; rows: how many; here: of how many samples there were scores already;
    unscored: how many of the rows have no scores, by reason; digest: of the ids of the rows.
    """

    match: Match
    shards: Folder
    folder: Folder
    partitions: Sequence[int]
    rows: int
    here: int
    unscored: Mapping[str, int]
    digest: str


def find_publication(name: str) -> tuple[HubPath, Publication]:
    """Where `org/name` or `org/name@revision` is, at a commit, and what is published there. Raises
    UserError."""
    place = pin(HubPath.parse(f"{SCHEME}datasets/{name}"))
    require(
        PUBLICATION in read_contents(place).sizes,
        f"{place.repo} holds no {PUBLICATION}, and so no scores; name a repository that"
        " `scores push` has made",
    )
    return place, read_publication(_content(place, PUBLICATION, MOST_BYTES))


def pull(context: RunContext, name: str, samples: int, only: Sequence[str]) -> None:
    """Take over the scores that a run with this configuration needs, from a repository.

    samples: how many are scored here for comparison; only: names of scores, none: all. Raises
    UserError in one line where anything does not fit or is not right; then no score is written.
    """
    place, publication = find_publication(name)
    matches = match_scores(context, publication, f"{place.repo}@{place.revision}", only)
    require(
        bool(matches.found),
        f"{place.repo} holds none of the scores that these settings need"
        f" ({', '.join(matches.missing)})",
    )
    check_models(context, publication, matches.found)
    pool = ingest_pool(context)
    missing = [*matches.missing, *check_pool(context, publication, matches, pool)]
    checked = take_over(context, pool, place, publication, matches.found, samples)
    _tell(context, pool, place, checked, missing)


def take_over(
    context: RunContext,
    pool: Pool,
    place: HubPath,
    publication: Publication,
    matches: Sequence[Match],
    samples: int,
) -> list[Checked]:
    """Fetch and check these scores, and then make them count, and the models known by them."""
    with tempfile.TemporaryDirectory() as local:
        checked = _fetch_all(context, place, matches, pool, Folder(local))
        for each in checked if samples else ():
            context.progress.say(recompute(context, pool, each.match, each.folder, samples))
        check_models(context, publication, matches)  # again, for all this took its time
        for each in checked:
            _write(each, place)
    for key in {match.scores.trained for match in matches} - {None}:
        artifact = context.storage.artifact("models", str(key))
        training = publication.models[str(key)]
        note_training(artifact, training, f"{place.repo}@{place.revision}")
    return checked


def _fetch_all(
    context: RunContext, place: HubPath, matches: Sequence[Match], pool: Pool, local: Folder
) -> list[Checked]:
    folders = [local.sub(match.scores.key) for match in matches]
    files = sum(len(match.scores.files) for match in matches)
    with context.progress.stage("pull", "files", files) as stage:
        for match, folder in zip(matches, folders, strict=True):
            _fetch(context, place, match, pool, folder, stage)
    return [
        _compare(context, pool, match, folder)
        for match, folder in zip(matches, folders, strict=True)
    ]


def _fetch(
    context: RunContext, place: HubPath, match: Match, pool: Pool, folder: Folder, stage: Stage
) -> None:
    """Fetch the files of a match and check them; the rows of the pool's samples go into the
    folder."""
    scores, name = match.scores, match.spec.name
    vocabulary = match.model.load_config().get_text_config().vocab_size
    rows, unscored = 0, Counter[str]()
    for file in scores.files:
        data = _content(place, file.name, file.size)
        check_content(file, data)
        table = read_scores(scores, file, data)
        check_ids(file, table, scores.partitions)
        check_values(file, table, vocabulary)
        index = _index(pool, file.partition, scores.partitions)
        if match.spec.encoding == EncoderSpec.of(context.config, context.base):  # as at ingest
            check_lengths(file, table, index)
        table = _of_pool(table, index, match.domain)
        folder.write_table(partition_file(SCORES, file.partition), table)
        rows += table.num_rows
        unscored.update(table["reason"].drop_null().to_pylist())
        stage.add(1)
    if match.spec.encoding.form == "whole":  # of others, the selection needs it or not
        check_unscored(name, rows, unscored, context.config.data.max_reject_ratio)


def _compare(context: RunContext, pool: Pool, match: Match, folder: Folder) -> Checked:
    """Compare what was fetched with what was scored here already, and leave this out."""
    scores, precision = match.scores, context.config.cluster.precision
    remaining = folder.sub("new")
    shards = context.storage.folder("pieces", scores.key)

    def compare() -> Checked:
        scored = ScoredRows.of(pool, fold(shards))
        partitions, rows, known = [], 0, 0
        unscored, digest = Counter[str](), hashlib.sha256()
        for number in sorted(file.partition for file in scores.files):
            table = folder.read_table(partition_file(SCORES, number))
            here = _scored_here(scored, table, number, scores.partitions)
            known += compare_scores(match.spec.name, table, here, precision)
            new = table.filter(pa.array(~among(id_array(table), id_array(here))))
            if new.num_rows:
                remaining.write_table(partition_file(SCORES, number), new)
                partitions.append(number)
                rows += new.num_rows
                digest.update("\n".join(new["sample_id"].to_pylist()).encode())
                unscored.update(new["reason"].drop_null().to_pylist())
        return Checked(
            match, shards, remaining, partitions, rows, known, unscored, digest.hexdigest()
        )

    return steadily(compare, [shards])


def _content(place: HubPath, name: str, most_bytes: int) -> bytes:
    """A file of the repository, which is not fetched where it is longer than this."""
    size = read_contents(place).sizes.get(name)
    require(size is not None, f"{place.repo} has no file {name}, which {PUBLICATION} names")
    require(
        (size or 0) <= most_bytes,
        f"{name} has {size:,} bytes in {place.repo}, more than the {most_bytes:,} that it can have",
    )
    return Folder(str(place.file(""))).read_bytes(name) or b""


def _index(pool: Pool, number: int, count: int) -> pa.Table:
    """The pool's index where ids of this partition of so many may be, sorted."""
    first = number * pool.partitions // count
    last = max(first + 1, (number + 1) * pool.partitions // count)
    columns = ["sample_id", "domain", "response_tokens"]
    return pa.concat_tables(pool.read_partition(n, columns) for n in range(first, last))


def _of_pool(table: pa.Table, index: pa.Table, domain: str | None) -> pa.Table:
    """The rows of samples that are in the pool: of others nothing here could be checked."""
    ids = id_array(index)
    wanted = ids if domain is None else ids[of_domain(index, domain)]
    return table.filter(pa.array(among(id_array(table), wanted)))


def _scored_here(scored: ScoredRows, table: pa.Table, number: int, count: int) -> pa.Table:
    """The rows that the shards hold of these samples, sorted, but those that are tried again."""
    schema = shard_schema(table.schema.names[2:-1])
    rows = scored.read(id_array(table), number, count, schema.names)
    rows = one_row_each(rows or schema.empty_table())
    return rows.filter(pa.array(~of_machine(rows)))


def _write(checked: Checked, place: HubPath) -> None:
    """Make checked scores count."""
    if not checked.rows:
        return
    scores = checked.match.scores
    origin = Origin(place.repo, str(place.revision), checked.rows)
    note_origin(checked.shards, origin, checked.digest)
    schema = shard_schema(scores.measures)
    detail = f"it has no scores in {place.repo} either"

    def parts() -> Iterator[tuple[int, pa.Table]]:
        for number in checked.partitions:
            rows = checked.folder.read_table(partition_file(SCORES, number))
            details = pc.if_else(pc.is_valid(rows["reason"]), detail, pa.scalar(None, pa.string()))
            yield number, rows.append_column("detail", details).cast(schema)

    write_snapshot(checked.shards, parts(), scores.partitions)


def _tell(
    context: RunContext,
    pool: Pool,
    place: HubPath,
    checked: Sequence[Checked],
    missing: Sequence[str],
) -> None:
    """Say what was taken over, and what was not."""
    say = context.progress.say
    for each in checked:
        name, of_pool = each.match.spec.name, each.rows + each.here
        of_domain = f" of {shown(each.match.domain)}" if each.match.domain else ""
        there = f"; {each.here:,} were here already" if each.here else ""
        reasons = (f"{reason} {count:,}" for reason, count in sorted(each.unscored.items()))
        none = f"; some could not be scored there: {', '.join(reasons)}" if each.unscored else ""
        say(
            f"{name} scores{of_domain}: {of_pool:,} of the pool's {len(pool):,} samples are in"
            f" {place.repo}@{place.revision}{there}{none}"
        )
    if missing:
        say(f"not published there, so computed here when a run needs them: {', '.join(missing)}")
    say("`instructdiff run` with the same settings selects by them")
