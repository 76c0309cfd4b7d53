"""Notes of where scores are from lie beside the shards, and are none of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from instructdiff_ray.scoring.origins import Origin, note_origin, origins_of
from instructdiff_ray.scoring.shards import Shards, fold_pieces, write_piece
from instructdiff_ray.storage.filesystem import Folder
from tests.scoring.test_shards import ids, scores

FIRST, SECOND = Origin("me/scores", "c" * 40, 5), Origin("you/scores", "d" * 40, 1)


def test_notes_of_one_commit_are_added_up(tmp_path: Path) -> None:
    folders = [Folder(str(tmp_path / name)) for name in ("a", "b")]
    assert origins_of(folders) == []
    for _ in range(2):  # the same samples are noted once, however often they are
        for folder, origin, samples in ((0, FIRST, "a"), (1, FIRST, "b"), (1, SECOND, "b")):
            note_origin(folders[folder], origin, samples)
        assert origins_of(folders) == [Origin("me/scores", "c" * 40, 10), SECOND]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'"a"'])
def test_a_damaged_note_counts_as_none(content: bytes, tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    note_origin(folder, FIRST, "a")
    folder.sub("origins").write_bytes("b.json", content)
    assert origins_of([folder]) == [FIRST]


def test_folding_leaves_the_notes_and_readers_pass_them_over(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    note_origin(folder, FIRST, "a")
    name, size = write_piece(folder, scores(ids(20)))
    before = Shards(folder)
    assert (before.snapshots, before.pieces, before.leftovers) == ([], {name: size}, [])
    fold_pieces(folder, [name])
    after = Shards(folder)
    assert [snapshot.rows for snapshot in after.snapshots] == [20]
    assert (after.pieces, after.leftovers) == ({}, [])
    assert origins_of([folder]) == [FIRST]
