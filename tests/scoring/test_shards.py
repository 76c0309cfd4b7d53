"""Pieces and the snapshots that they are folded into: every score once, and few files read."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import ray

from instructdiff_ray.config.data import TemplateConfig
from instructdiff_ray.errors import LostScores, UserError
from instructdiff_ray.models.encoding import LIKELIHOOD, EncoderSpec
from instructdiff_ray.models.model import Model
from instructdiff_ray.pool.partition import id_array, partition_file, split_by_partition
from instructdiff_ray.pool.pool import INDEX, Pool
from instructdiff_ray.scoring import scored_rows, shards
from instructdiff_ray.scoring.plan import ScoreTarget, find_lacking
from instructdiff_ray.scoring.scored_rows import ScoredRows
from instructdiff_ray.scoring.shards import (
    FAN_IN,
    BackgroundFolds,
    Shards,
    fold,
    fold_pieces,
    one_row_each,
    shard_schema,
    write_piece,
)
from instructdiff_ray.scoring.spec import SCORES
from instructdiff_ray.scoring.store import gather
from instructdiff_ray.storage.artifacts import MANIFEST
from instructdiff_ray.storage.filesystem import Folder
from tests.s3 import Server

pytestmark = pytest.mark.usefixtures("ray_session")
MODEL = Model("", None, False, "", None)
ENCODING = EncoderSpec(MODEL, TemplateConfig(), 1, False)
SCHEMA = shard_schema(LIKELIHOOD)


def ids(count: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return sorted(f"{rng.getrandbits(128):032x}" for _ in range(count))


def scores(sample_ids: Sequence[str], lost: bool = False) -> pa.Table:
    """Scores that tell whose they are."""
    values = [None if lost else int(i[:8], 16) / 2**32 for i in sample_ids]
    reasons = ["kills_scorer" if lost else None] * len(values)
    columns = [sample_ids, [7] * len(values), values, values, reasons, reasons]
    arrays = [pa.array(c, field.type) for c, field in zip(columns, SCHEMA, strict=True)]
    return pa.table(arrays, schema=SCHEMA)


def leave_pieces(folder: Folder, sample_ids: Sequence[str], size: int = 100) -> list[str]:
    """Pieces as scorers leave them: in no order."""
    mixed = random.Random(1).sample(sample_ids, len(sample_ids))
    starts = range(0, len(mixed), size)
    return [write_piece(folder, scores(mixed[start : start + size]))[0] for start in starts]


def make_pool(folder: Path | str, sample_ids: Sequence[str], partitions: int = 1) -> Pool:
    """A pool of which only the index is there."""
    count = len(sample_ids)
    lengths = [pa.array([5] * count, pa.int32())] * 3
    domain = pa.array(["general"] * count).dictionary_encode()
    index = pa.table([sorted(sample_ids), domain, *lengths], names=INDEX.names).cast(INDEX)
    for number, part in enumerate(split_by_partition(index, partitions)):
        Folder(str(folder)).write_table(partition_file("index", number), part)
    counts = {"read": count, "rejected": {}, "pool": count}
    return Pool(Folder(str(folder)), "key", "digest", [], partitions, False, counts)


def gathered(pool: Pool, folder: Folder, target: Path) -> pa.Table:
    gather(pool, {None: folder}, LIKELIHOOD, Folder(str(target)))
    names = [partition_file(SCORES, number) for number in range(pool.partitions)]
    return pa.concat_tables(Folder(str(target)).read_table(name) for name in names)


def test_what_is_folded_is_gathered_and_pieces_are_gone(tmp_path: Path) -> None:
    folder, names = Folder(str(tmp_path / "shards")), ids(2500)
    leave_pieces(folder, names)
    # A sample that another run has scored too, and one that it could not score.
    write_piece(folder, scores(names[:3]))
    write_piece(folder, scores(names[5:6], lost=True))
    pool = make_pool(tmp_path / "pool", names[::2], partitions=4)
    table = gathered(pool, folder, tmp_path / "scores")
    assert table.equals(scores(names[::2]))
    assert not list((tmp_path / "shards").glob("piece-*"))
    (snapshot,) = Shards(folder).snapshots
    assert snapshot.rows == 2500
    # Nothing is left to fold, and the same comes again.
    assert gathered(pool, folder, tmp_path / "again").equals(table)
    assert Shards(folder).snapshots == [snapshot]


def test_a_sample_without_scores_is_no_scores_artifact(tmp_path: Path) -> None:
    folder, names = Folder(str(tmp_path / "shards")), ids(50)
    leave_pieces(folder, names[1:])
    with pytest.raises(LostScores):
        gathered(make_pool(tmp_path / "pool", names), folder, tmp_path / "scores")


def test_many_snapshots_of_a_size_become_one_and_a_row_is_in_one_of_them(tmp_path: Path) -> None:
    folder, names = Folder(str(tmp_path / "shards")), ids(FAN_IN * 30)
    pool, others = make_pool(tmp_path / "pool", names), ids(50, seed=1)
    leave_pieces(folder, others)
    (foreign,) = fold(folder).snapshots
    for n in range(FAN_IN - 1):
        leave_pieces(folder, names[n * 30 : (n + 1) * 30])
        assert len(fold(folder).snapshots) == n + 2
    leave_pieces(folder, names[-30:])
    assert gathered(pool, folder, tmp_path / "scores").equals(scores(names))
    merged, left = sorted(Shards(folder).snapshots, key=lambda snapshot: -snapshot.rows)
    assert left == foreign
    assert folder.read_table(merged.file(0)).equals(scores(names))
    names_left = {path.name for path in (tmp_path / "shards").iterdir()}
    assert names_left == {merged.name, foreign.name}


def test_a_snapshot_of_several_partitions_serves_pools_of_more_and_of_fewer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, names = Folder(str(tmp_path / "shards")), ids(600)
    monkeypatch.setattr("instructdiff_ray.pool.partition.ROWS_PER_PARTITION", 100)
    fold_pieces(folder, leave_pieces(folder, names))  # here, for Ray's workers see no patch
    (snapshot,) = Shards(folder).snapshots
    assert snapshot.partitions == 8
    for partitions in (1, 2, 8, 32):
        pool = make_pool(tmp_path / f"pool-{partitions}", names[::3], partitions)
        table = gathered(pool, folder, tmp_path / f"scores-{partitions}")
        assert table.equals(scores(names[::3]))


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_fold_that_died_has_lost_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, names = Folder(str(tmp_path / "shards")), ids(300)
    pieces = leave_pieces(folder, names)
    pool = make_pool(tmp_path / "pool", names)
    with monkeypatch.context() as patch:  # before the manifest
        patch.setattr(
            shards, "_finish", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            fold_pieces(folder, pieces)
    assert not Shards(folder).snapshots and len(Shards(folder).pieces) == 3
    with monkeypatch.context() as patch:  # after it, when a part of the pieces was deleted
        patch.setattr(shards, "_delete", lambda folder, names: folder.delete(names[0]))
        fold_pieces(folder, pieces)
    left = Shards(folder)
    assert len(left.snapshots) == 1 and not left.pieces and left.leftovers == sorted(pieces[1:])
    assert gathered(pool, folder, tmp_path / "scores").equals(scores(names))
    # The next fold clears up.
    leave_pieces(folder, ids(10, seed=1))
    fold(folder)
    assert not list((tmp_path / "shards").glob("piece-*"))


def test_two_runs_that_fold_the_same_pieces_do_no_harm(tmp_path: Path) -> None:
    folder, names = Folder(str(tmp_path / "shards")), ids(300)
    pieces = leave_pieces(folder, names)
    copies = {name: folder.read_bytes(name) for name in pieces}
    fold_pieces(folder, pieces)
    for name, data in copies.items():  # as the other run, which has read them before
        folder.write_bytes(name, data or b"")
    fold_pieces(folder, pieces)
    assert len(Shards(folder).snapshots) == 2
    fold_pieces(folder, pieces)  # a third comes too late
    assert len(Shards(folder).snapshots) == 2
    pool = make_pool(tmp_path / "pool", names)
    assert gathered(pool, folder, tmp_path / "scores").equals(scores(names))


def test_a_snapshot_that_another_run_merges_meanwhile_is_read_from_the_merged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, names = Folder(str(tmp_path / "shards")), ids(300)
    leave_pieces(folder, names)
    pool = make_pool(tmp_path / "pool", names)
    fold(folder)
    listed = scored_rows.fold

    def merged_meanwhile(of: Folder) -> Shards:
        found = listed(of)
        if len(calls) == 0:
            calls.append(1)
            shards.merge(of, found.snapshots)
        return found

    calls: list[int] = []
    monkeypatch.setattr(scored_rows, "fold", merged_meanwhile)
    assert gathered(pool, folder, tmp_path / "scores").equals(scores(names))
    assert calls


def test_pieces_are_folded_while_others_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, names, folds = Folder(str(tmp_path)), ids(400), BackgroundFolds()
    monkeypatch.setattr(shards, "BYTES_PER_FOLD", 1)
    for start in range(0, 300, 100):
        folds.add(folder, *write_piece(folder, scores(names[start : start + 100])))
    monkeypatch.setattr(shards, "BYTES_PER_FOLD", 1 << 40)
    folds.add(folder, *write_piece(folder, scores(names[300:])))
    folds.wait()
    found = Shards(folder)
    assert [snapshot.rows for snapshot in found.snapshots] == [100] * 3
    assert len(found.pieces) == 1


@pytest.mark.parametrize("foreign", [300, 200_000])
@pytest.mark.parametrize("partitions", [1, 2])
def test_snapshots_of_other_pools_are_passed_over(
    foreign: int, partitions: int, tmp_path: Path
) -> None:
    folder = Folder(str(tmp_path / "shards"))
    names, others = ids(3000), ids(foreign, seed=1)
    pool = make_pool(tmp_path / "pool", names, partitions)
    for sample_ids in (names, others, [*others[::2], *names[::15]]):
        fold_pieces(folder, [write_piece(folder, scores(sorted(sample_ids)))[0]])
    by_rows = {snapshot.rows: snapshot.name for snapshot in Shards(folder).snapshots}
    scored = ScoredRows.of(pool, Shards(folder))
    taken = {snapshot.name for snapshot in scored.snapshots}
    assert taken == {by_rows[3000], by_rows[foreign // 2 + 200]}
    wanted = id_array(pool.read_partition(0))
    rows = scored.read(wanted, 0, partitions, ["sample_id"])
    assert rows is not None
    assert np.isin(wanted, id_array(rows)).all()


def test_where_ids_are_too_few_to_tell_a_snapshot_is_read(tmp_path: Path) -> None:
    folder, names, others = Folder(str(tmp_path / "shards")), ids(40), ids(400_000, seed=1)
    fold_pieces(folder, [write_piece(folder, scores(others))[0]])
    # Of forty ids six are among the least sixth, which is not enough.
    pool = make_pool(tmp_path / "pool", names)
    assert len(ScoredRows.of(pool, Shards(folder)).snapshots) == 1


def test_what_a_scan_asks_of_a_store_does_not_grow_with_the_pieces_nor_with_other_pools(
    s3: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # All as it is with a thousand times as many rows: ten million, and a hundred of another pool.
    monkeypatch.setattr("instructdiff_ray.pool.partition.ROWS_PER_PARTITION", 1000)
    monkeypatch.setattr(scored_rows, "LEAST_SAMPLES", 16)
    root, names, others = f"{s3.uri}/{tmp_path.name}", ids(10_000), ids(100_000, seed=1)
    pool = make_pool(f"{root}/pool", names, partitions=16)
    targets = [
        ScoreTarget(name, MODEL, ENCODING, Folder(f"{root}/pieces/{name}"))
        for name in ("base", "calibrated")
    ]

    def score(target: ScoreTarget, sample_ids: list[str], at_once: int) -> None:
        """As scorers leave it, and the tasks beside them that fold pieces."""
        mixed = random.Random(2).sample(sample_ids, len(sample_ids))
        for start in range(0, len(mixed), at_once):
            batch = mixed[start : start + at_once]
            fold_pieces(target.shards, leave_pieces(target.shards, batch, size=at_once))

    def reads() -> int:
        """Of a scan that finds all samples scored."""
        s3.read.clear()
        assert not find_lacking(pool, targets)
        assert not any("/piece-" in path for path in s3.read)
        return s3.reads()

    for target in targets:
        score(target, names, at_once=1000)
    find_lacking(pool, targets)
    assert [len(Shards(target.shards).snapshots) for target in targets] == [1, 1]
    alone = reads()
    assert alone < 500
    score(targets[0], others, at_once=100_000)
    # Of a snapshot of another pool the manifest is read, and its least ids.
    assert reads() - alone < 10


def test_a_damaged_piece_costs_its_own_rows(tmp_path: Path) -> None:
    folder, names = Folder(str(tmp_path / "shards")), ids(30)
    pieces = [write_piece(folder, scores(names[n : n + 10]))[0] for n in (0, 10, 20)]
    damaged = tmp_path / "shards" / pieces[1]
    data = bytearray(damaged.read_bytes())
    data[len(data) // 3] ^= 1
    damaged.write_bytes(data)
    pool = make_pool(tmp_path / "pool", names)
    (lacking,) = find_lacking(pool, [ScoreTarget("base", MODEL, ENCODING, folder)])
    assert lacking.samples == 10 and lacking.prefixes
    assert ray.get(lacking.prefixes).tolist() == [int(i[:16], 16) for i in names[10:20]]


def test_who_comes_too_late_to_merge_leaves_nothing(tmp_path: Path) -> None:
    folder, names = Folder(str(tmp_path)), ids(40)
    for n in (0, 20):
        leave_pieces(folder, names[n : n + 20])
        fold(folder)
    first, second = Shards(folder).snapshots
    folder.delete(first.name)
    shards.merge(folder, [first, second])
    assert [path.name for path in tmp_path.iterdir()] == [second.name]


def test_a_manifest_that_another_run_deletes_meanwhile_is_listed_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, names, read = Folder(str(tmp_path / "shards")), ids(40), Folder.read_bytes
    leave_pieces(folder, names)
    pool = make_pool(tmp_path / "pool", names)
    fold(folder)
    monkeypatch.setattr(scored_rows, "PAUSE_S", 0.01)
    gone = []

    def once(self: Folder, name: str) -> bytes | None:
        if name.endswith(MANIFEST) and not gone:
            gone.append(name)
            return None
        return read(self, name)

    monkeypatch.setattr(Folder, "read_bytes", once)
    assert gathered(pool, folder, tmp_path / "scores").equals(scores(names))
    assert gone
    monkeypatch.setattr(Folder, "read_bytes", lambda self, name: None)
    with pytest.raises(UserError, match="other runs are merging"):
        gathered(pool, folder, tmp_path / "again")


def test_a_few_samples_that_were_folded_with_many_of_another_pool_are_found(
    tmp_path: Path,
) -> None:
    folder, names, others = Folder(str(tmp_path / "shards")), ids(3000), ids(200_000, seed=1)
    pool = make_pool(tmp_path / "pool", names)
    fold_pieces(folder, [write_piece(folder, scores(names[:-5]))[0]])
    # The last five are none of the least ids of this snapshot, by which it is judged.
    fold_pieces(folder, [write_piece(folder, scores([*others, *names[-5:]]))[0]])
    assert len(ScoredRows.of(pool, Shards(folder)).snapshots) == 1
    assert gathered(pool, folder, tmp_path / "scores").equals(scores(names))


def test_a_snapshot_with_a_damaged_manifest_is_deleted(tmp_path: Path) -> None:
    folder, names = Folder(str(tmp_path / "shards")), ids(20)
    leave_pieces(folder, names)
    (snapshot,) = fold(folder).snapshots
    folder.write_bytes(f"{snapshot.name}/{MANIFEST}", b"{")
    pool = make_pool(tmp_path / "pool", names)
    (lacking,) = find_lacking(pool, [ScoreTarget("base", MODEL, ENCODING, folder)])
    assert lacking.samples == 20
    assert not list((tmp_path / "shards").iterdir())


def test_of_two_reasons_one_that_is_for_good_is_kept(tmp_path: Path) -> None:
    lost = scores(ids(1), lost=True)
    for_good = lost.set_column(4, "reason", pa.array(["not_finite"]))
    for tables in ([lost, for_good], [for_good, lost]):
        assert one_row_each(pa.concat_tables(tables)).equals(for_good)
