"""Near-duplicates of a whole pool: which go follows from the order of its rows alone."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from instructdiff_ray.pool import near_duplicates
from instructdiff_ray.pool.dedup import deduplicate
from instructdiff_ray.pool.near_duplicates import (
    SETS,
    _compare,
    _grouped,
    _start_comparisons,
)
from instructdiff_ray.pool.pool import DUPLICATES_FILE, REJECTS_FILE, ROWS, Pool
from instructdiff_ray.pool.similarity import compared_text, sets_of, shingles
from instructdiff_ray.sample import Part, sample_id
from instructdiff_ray.storage.filesystem import Folder
from tests.pool.test_similarity import WORDS, mixed_texts, plain_search
from tests.pools import samples


def row(line: int, text: str, system: str = "") -> dict[str, Any]:
    parts = [Part("instruction", text[:40]), Part("response", text[40:])]
    parts = [Part("system", system)] * bool(system) + parts
    return {
        "sample_id": sample_id(parts),
        "domain": "general",
        "parts": [part._asdict() for part in parts],
        "tokens": 9,
        "response_tokens": 5,
        "instruction_tokens": 4,
        "truncated": False,
        "source": "{}",
        "file": "a.jsonl",
        "line": line,
    }


def reject(line: int) -> dict[str, Any]:
    return {"source": "x", "file": "a.jsonl", "line": line, "reason": "invalid_json", "detail": "x"}


def pool_of(
    rows: Sequence[dict[str, Any]], size: int, path: Path, similarity: float | None
) -> Pool:
    """A pool of parts of so many rows."""
    folder = Folder(str(path))
    for start in range(0, len(rows), size):
        table = pa.Table.from_pylist(list(rows[start : start + size]), ROWS)
        folder.write_table(f"part-{start:07}-0000000-last.parquet", table)
    parts = sorted(name for name in folder.sizes() if name.startswith("part-"))
    info = deduplicate(parts, False, folder, similarity)
    return Pool(folder, "key", info["digest"], parts, info["partitions"], False, info["counts"])


@pytest.mark.usefixtures("ray_session")
def test_near_duplicates_go_whatever_parts_and_tasks_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of the others none is of a large tree; those of one template are, and some of its last are
    # like some in its middle.
    template, draw = " ".join(f"t{n}" for n in range(60)), random.Random(0)
    members = [f"{template} {' '.join(draw.choices(WORDS, k=15))}" for _ in range(100)]
    copies = [f"{member} more" for member in members[60:80]]
    texts = [*mixed_texts(300, seed=3), *members, *copies]
    rows = [row(line, text) for line, text in enumerate(texts, 1)]
    rows[50:50] = [reject(501), {**rows[3], "line": 502}, reject(503), {**rows[40], "line": 504}]
    pools = [pool_of(rows, 500, tmp_path / "one", 0.8)]
    monkeypatch.setattr(near_duplicates, "BUCKETS_PER_TASK", 2000)
    monkeypatch.setattr(near_duplicates, "FORESTS_PER_TASK", 2)
    monkeypatch.setattr(near_duplicates, "COMPARED_PER_TASK", 25)
    pools.append(pool_of(rows, 61, tmp_path / "many", 0.8))
    kept = [[sample["line"] for sample in samples(pool)] for pool in pools]
    assert kept[0] == kept[1]
    assert pools[0].digest == pools[1].digest and pools[0].counts == pools[1].counts

    valid = [each for each in rows if "reason" not in each]
    first = {each["sample_id"]: each for each in reversed(valid)}
    distinct = [each for each in valid if first[each["sample_id"]] is each]
    by_text = sets_of(shingles([compared_text(each["parts"]) for each in distinct]))
    expected = [
        each["line"]
        for each, going in zip(distinct, plain_search(by_text, 0.8), strict=True)
        if not going
    ]
    assert len({*kept[0]} ^ {*expected}) <= 0.01 * len(rows)  # what LSH may miss
    assert not {*kept[0]} & {*range(401, 421)}  # the copies, in groups of their own

    pool, staying = pools[1], {sample["sample_id"] for sample in samples(pools[1])}
    dropped = pool.folder.read_table(REJECTS_FILE).to_pylist()
    assert Counter(each["reason"] for each in dropped) == pool.counts["rejected"]
    assert sum(pool.counts["rejected"].values()) + len(pool) == pool.counts["read"] == len(rows)
    near = [each for each in dropped if each["reason"] == "near_duplicate"]
    assert len(near) > 20
    assert all(each["detail"].removeprefix("like ") in staying for each in near)
    assert [*pool.ids()] == sorted(staying)
    assert pool.folder.read_table(DUPLICATES_FILE).num_rows == len(valid) - len(pool)


@pytest.mark.usefixtures("ray_session")
def test_a_pool_without_any_is_as_it_is_without_the_option(tmp_path: Path) -> None:
    rows = [row(n, f"{n} {n + 1} {n + 2} {n + 3} {n * n} is a text of its own") for n in range(40)]
    plain, cleaned = (pool_of(rows, 9, tmp_path / str(s), s) for s in (None, 0.9))
    assert plain.digest == cleaned.digest and plain.counts == cleaned.counts
    assert cleaned.counts["rejected"] == {}
    # A system prompt that all have in common makes no sample like another.
    system = " ".join(f"rule {n}" for n in range(200))
    prompted = [row(n, f"What of {n}? {n * n} it is.", system) for n in range(20)]
    assert pool_of(prompted, 9, tmp_path / "system", 0.8).counts["pool"] == 20


def test_small_trees_share_a_group_and_a_large_one_is_a_chain() -> None:
    sizes = [2, 97, 201, 5, 2]
    roots = np.repeat(np.cumsum([0, *sizes[:-1]]), sizes)
    order = np.random.default_rng(0).permutation(len(roots))
    table, chains = _grouped(pa.table({"place": order, "root": roots[order]}), 100)
    assert chains == [1, 1, 3]
    assert table["place"].to_pylist() == [*range(sum(sizes))]
    groups = table["group"].to_numpy()
    starts = np.cumsum([0, *sizes])
    of = [groups[a:b] for a, b in zip(starts, starts[1:], strict=False)]
    assert [*map(np.unique, of)] != [] and {0, 1} >= {int(g) for n in (0, 1, 3, 4) for g in of[n]}
    assert of[2].tolist() == np.repeat([2, 3, 4], [100] * 2 + [1]).tolist()
    assert all(len({*each.tolist()}) == 1 for each in (of[0], of[1], of[3], of[4]))
    assert np.bincount(groups).max() <= 200


def test_a_chain_of_groups_comes_out_as_one_group(monkeypatch: pytest.MonkeyPatch) -> None:
    sets = sets_of(shingles(mixed_texts(200, seed=4)))
    table = pa.table(
        [np.arange(200), [f"id{n}" for n in range(200)], [each.tolist() for each in sets]],
        schema=SETS,
    )
    monkeypatch.setattr(near_duplicates, "task", lambda function, outputs: function)
    whole, rest = _compare(None, 0.8, table)
    groups = [[table.slice(start, 20), table.slice(start + 20, 20)] for start in range(0, 200, 40)]
    found = pa.concat_tables(_start_comparisons(groups, 0.8)).sort_by("row")
    assert found["row"].equals(whole["row"]) and 20 < found.num_rows < 180
    assert rest["place"].to_pylist() == sorted({*range(200)} - {*whole["row"].to_pylist()})
    staying = {f"id{n}" for n in rest["place"].to_pylist()}
    assert {*found["sample_id"].to_pylist()} <= staying
