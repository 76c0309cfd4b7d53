"""Comparisons against sets and a rank correlation by hand."""

from __future__ import annotations

import io
import math
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from matplotlib.image import imread

from instructdiff_ray.errors import UserError
from instructdiff_ray.pool.pool import Pool
from instructdiff_ray.results.compare import as_rows, compare, heat_map, selection_of, spearman
from instructdiff_ray.storage.filesystem import Folder


def leave_run(folder: Path, rows: list[tuple[str, str, str, float | None]]) -> str:
    """rows: id, domain, fate, ΔH."""
    names = ["sample_id", "domain", "fate", "delta_entropy"]
    types = [pa.string(), pa.string(), pa.string(), pa.float64()]
    columns = [pa.array(c, t) for c, t in zip(zip(*sorted(rows), strict=True), types, strict=True)]
    folder.mkdir(parents=True)
    pq.write_table(pa.table(columns, names=names), folder / "ranking.parquet", row_group_size=3)
    (folder / "summary.json").write_text('{"strategy": "random"}')
    return str(folder)


def test_overlap_recall_and_jaccard_are_those_of_the_sets(tmp_path: Path) -> None:
    rng = random.Random(0)
    ids = [f"{n:032x}" for n in range(60)]
    runs, chosen = [], []
    for name in ("one", "two"):
        rows = [
            (i, "ab"[n % 2], rng.choice(["selected", "not_top", "below_band"]), rng.random())
            for n, i in enumerate(ids[: 50 if name == "one" else 60])
        ]
        chosen.append({(row[0], row[1]) for row in rows if row[2] == "selected"})
        runs.append(leave_run(tmp_path / name, rows))
    found = compare(runs)
    assert [one.domain for one in found] == ["a", "b", "all domains"]
    for one in found:
        a, b = ({i for i, d in side if one.domain in (d, "all domains")} for side in chosen)
        assert (one.run_a, one.run_b) == ("one random", "two random")
        assert (one.size_a, one.size_b, one.common) == (len(a), len(b), len(a & b))
        assert one.recall_a == pytest.approx(len(a & b) / len(a))
        assert one.recall_b == pytest.approx(len(a & b) / len(b))
        assert one.jaccard == pytest.approx(len(a & b) / len(a | b))
    assert len(as_rows(found)) == 4
    picture = imread(io.BytesIO(heat_map(found)))
    assert picture.shape[1] > picture.shape[0] > 100 and picture.std() > 0.1


def test_a_run_with_itself_agrees_and_one_upside_down_disagrees(tmp_path: Path) -> None:
    rows = [(f"{n:032x}", "a", "selected" if n < 5 else "not_top", float(n)) for n in range(20)]
    turned = [(i, d, "selected" if h > 14 else "not_top", -h) for i, d, _, h in rows]
    runs = [leave_run(tmp_path / str(n), r) for n, r in enumerate((rows, rows, turned))]
    same, other, _ = compare(runs)
    assert (same.jaccard, same.rank_correlation) == (1.0, pytest.approx(1.0))
    assert (other.common, other.rank_correlation) == (0, pytest.approx(-1.0))


def test_ties_share_a_rank_and_what_has_no_value_is_left_out() -> None:
    first = np.array([1.0, 2.0, 2.0, 3.0, math.nan])
    second = np.array([1.0, 3.0, 2.0, 4.0, 9.0])
    ranks = np.array([1, 2.5, 2.5, 4]), np.array([1, 3, 2, 4])
    assert spearman(first, second) == pytest.approx(np.corrcoef(*ranks)[0, 1])
    assert math.isnan(spearman(np.ones(3), np.arange(3.0)))
    assert math.isnan(spearman(np.full(3, math.nan), np.arange(3.0)))


def test_a_baseline_has_no_entropy_change_to_correlate(tmp_path: Path) -> None:
    rows = [(f"{n:032x}", "a", "selected", None) for n in range(3)]
    (one,) = compare([leave_run(tmp_path / "x/1", rows), leave_run(tmp_path / "y/1", rows)])
    assert (one.run_a, one.run_b, one.jaccard) == ("x/1 random", "y/1 random", 1.0)
    assert math.isnan(one.rank_correlation) and as_rows([one])[1][-1] == "–"


def test_a_selection_is_read_and_that_of_another_pool_is_refused(tmp_path: Path) -> None:
    ids = [f"{n:032x}" for n in range(8)]
    rows = [(i, "a", "selected" if n % 3 == 0 else "not_top", 0.0) for n, i in enumerate(ids)]
    run = leave_run(tmp_path / "run", rows)

    def pool(ids: list[str]) -> Pool:
        folder = tmp_path / str(len(ids))
        folder.mkdir()
        pq.write_table(pa.table({"sample_id": ids}), folder / "index-00000.parquet")
        return Pool(Folder(str(folder)), "", "", [], 1, False, {})

    assert selection_of(run, pool(ids)) == ids[::3]
    with pytest.raises(UserError, match="1 of the 3 samples that .* has selected are not in this"):
        selection_of(run, pool(ids[:6]))


def test_what_can_not_be_compared_is_told_in_one_line(tmp_path: Path) -> None:
    one = leave_run(tmp_path / "one", [("0" * 32, "a", "selected", 0.0)])
    two = leave_run(tmp_path / "two", [("1" * 32, "a", "selected", 0.0)])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no finished run"):
        compare([one, str(tmp_path / "empty")])
    with pytest.raises(UserError, match="no sample in common"):
        compare([one, two])
    with pytest.raises(UserError, match="named twice"):
        compare([one, one + "/"])
