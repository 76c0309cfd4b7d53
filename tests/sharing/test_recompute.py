"""What is drawn of pulled scores, and what is said of the comparison; no model runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from instructdiff_ray.errors import UserError
from instructdiff_ray.pool.partition import partition_file, split_by_partition
from instructdiff_ray.scoring.blocks import KILLS_SCORER, NOT_FINITE, OUT_OF_MEMORY
from instructdiff_ray.scoring.shards import shard_schema
from instructdiff_ray.sharing.recompute import agreement, draw_rows
from instructdiff_ray.storage.filesystem import Folder
from tests.sharing.test_checks import ROWS, put, rows_of

TABLE = rows_of()
SCORED = [row for row in range(ROWS) if row % 10 != 9]


def here(rows: list[int], reasons: dict[int, str]) -> pa.Table:
    """These rows as scorers leave them; without scores where there is a reason."""
    table = TABLE
    for row, reason in reasons.items():
        for column, value in (("nll", None), ("entropy", None), ("reason", reason)):
            table = put(table, column, row, value)
    return (
        table.append_column("detail", table["reason"])
        .take(rows)
        .cast(shard_schema(("nll", "entropy")))
    )


def test_a_machine_that_is_too_small_calls_no_score_wrong() -> None:
    drawn = TABLE.slice(0, 5)
    all_scored = "base scores: 5 samples were scored here too, and agree"
    assert agreement("base", drawn, here([*range(5)], {}), "fp32") == all_scored
    too_small = {1: OUT_OF_MEMORY, 2: KILLS_SCORER}
    line = agreement("base", drawn, here([*range(5)], too_small), "fp32")
    assert line.endswith(
        "3 samples were scored here too, and agree; for 2 others this machine is too small"
    )
    none = dict.fromkeys(range(5), OUT_OF_MEMORY)
    with pytest.raises(UserError, match="too small to score any of the 5 samples"):
        agreement("base", drawn, here([*range(5)], none), "fp32")


def test_that_a_sample_can_t_be_scored_is_compared_too() -> None:
    drawn = put(put(put(TABLE, "nll", 3, None), "entropy", 3, None), "reason", 3, NOT_FINITE)
    everything = [*range(ROWS)]
    with pytest.raises(UserError, match=f"sample {TABLE['sample_id'][3].as_py()} are not those"):
        agreement("base", drawn, here(everything, {}), "fp32")
    assert agreement("base", drawn, here(everything, {3: NOT_FINITE}), "fp32").startswith(
        f"base scores: {ROWS} samples"
    )


@pytest.mark.parametrize("partitions", [1, 4])
def test_rows_are_drawn_of_all_partitions_with_scores_and_without(
    partitions: int, tmp_path: Path
) -> None:
    folder = Folder(str(tmp_path))
    for number, part in enumerate(split_by_partition(TABLE, partitions)):
        folder.write_table(partition_file("scores", number), part)
    assert draw_rows(folder, ROWS).equals(TABLE)
    few = [draw_rows(folder, 8)["sample_id"].to_pylist() for _ in range(40)]
    assert all(len(ids) == 8 and ids == sorted(ids) for ids in few)
    drawn = np.unique(np.concatenate(few))
    unscored = {TABLE["sample_id"][row].as_py() for row in {*range(ROWS)} - {*SCORED}}
    # A row is missed by 40 draws of a fifth of all with probability 0.8⁴⁰, about 1 in 7,500.
    assert len(drawn) > ROWS - 4 and unscored & {*drawn.tolist()}
