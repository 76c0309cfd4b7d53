"""The driver's memory over a synthetic pool: `python -m benchmarks.memory 1000000 10000000`.

All that the driver does behind the workers, for pools of these sizes: settle duplicates and write
the index, find what is not scored, gather the scores of two models, rank, and write the ranking.
The numbers are random; no model runs. Each size has a process of its own.
"""

from __future__ import annotations

import binascii
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.common import peak_mib, reset_peak, save
from instructdiff_ray.config.data import TemplateConfig
from instructdiff_ray.config.selection import SelectConfig
from instructdiff_ray.models.encoding import LIKELIHOOD, Rendering
from instructdiff_ray.models.model import Model
from instructdiff_ray.pool.dedup import Settling
from instructdiff_ray.pool.ingest import RECEIPT, ROWS_PER_PART
from instructdiff_ray.pool.pool import Pool
from instructdiff_ray.results.outputs import write_ranking
from instructdiff_ray.scoring.dataflow import ROWS_PER_BATCH
from instructdiff_ray.scoring.plan import View, find_passes
from instructdiff_ray.scoring.store import gather, piece_schema, write_pieces
from instructdiff_ray.selection.ranking import Criteria, fate_counts, rank
from instructdiff_ray.selection.strategies import STRATEGIES
from instructdiff_ray.storage.artifacts import Finished
from instructdiff_ray.storage.filesystem import Folder

ROLES = ("base", "calibrated")
MODEL = Model("", None, False, "", None)
RENDERING = Rendering(MODEL, TemplateConfig(), 1, False)


def ids(count: int, rng: np.random.Generator) -> pa.Array:
    """Random sample ids."""
    digits = binascii.hexlify(rng.bytes(16 * count))
    return pa.array(np.frombuffer(digits, "S32").astype("U32"))


def receipts(rows: int) -> Iterator[pa.Table]:
    """Receipts of a pool of valid rows, as the workers send them."""
    rng = np.random.default_rng(0)
    for start in range(0, rows, ROWS_PER_PART):
        count = min(ROWS_PER_PART, rows - start)
        tokens = rng.integers(20, 500, count).astype(np.int32)
        columns = [
            ids(count, rng),
            pa.array(["general"] * count),
            tokens,
            tokens // 2,
            tokens // 2,
            pa.array([False] * count),
            pa.nulls(count, pa.string()),
            pa.array([f"{start:032x}"] * count),
        ]
        yield pa.table(columns, schema=RECEIPT)


def leave_pieces(pool: Pool, folder: Folder, seed: int) -> None:
    """Pieces as scorers leave them; in the order of ids, which is no help to who gathers them."""
    rng = np.random.default_rng(seed)
    for index in pool.index():
        for start in range(0, index.num_rows, ROWS_PER_BATCH):
            some = index.slice(start, ROWS_PER_BATCH)
            values = [pa.array(rng.normal(2, 0.5, some.num_rows)) for _ in range(2)]
            told = pa.nulls(some.num_rows, pa.string())
            columns = [some["sample_id"], some["response_tokens"], *values, told, told]
            write_pieces(folder, pa.table(columns, schema=piece_schema(LIKELIHOOD)))


def measure(rows: int) -> dict[str, Any]:
    """Seconds and peak of memory (MiB, above what an idle driver holds) of each step."""
    figures: dict[str, Any] = {"rows": rows, "idle_mib": round(peak_mib())}

    @contextmanager
    def step(name: str) -> Iterator[None]:
        reset_peak()
        began = time.monotonic()
        yield
        seconds = time.monotonic() - began
        peak = peak_mib() - figures["idle_mib"]
        figures[name] = {"seconds": round(seconds, 1), "peak_mib": round(peak)}
        print(f"{rows:>12,} {name:<10}{seconds:8.1f} s {peak:8.0f} MiB", flush=True)

    with tempfile.TemporaryDirectory(dir="/var/tmp") as path:
        folder = Folder(path)
        with step("settle"):
            settling = Settling(False, folder)
            for receipt in receipts(rows):
                settling.add(receipt)
            info = settling.finish()
        pool = Pool(folder, "key", info["digest"], [], [], info["counts"])
        pieces = {role: folder.sub(f"pieces-{role}") for role in ROLES}
        for seed, role in enumerate(ROLES):
            leave_pieces(pool, pieces[role], seed)
        with step("find"):
            assert not find_passes(pool, [View(RENDERING, dict.fromkeys(ROLES, MODEL), pieces)])
        with step("gather"):
            for role in ROLES:
                gather(pool, {None: pieces[role]}, LIKELIHOOD, folder.sub(role))
        scores = {role: Finished(folder.sub(role), {}) for role in ROLES}
        with step("select"):
            criteria = Criteria(STRATEGIES["instructdiff"], lambda _: SelectConfig())
            ranking = rank(pool, scores, criteria)
        with step("write"):
            write_ranking(folder.sub("run"), ranking, set())
        assert sum(fate_counts(ranking).values()) >= rows
    return figures


def main() -> None:
    """Measure the sizes that the command line names."""
    sizes = [int(size) for size in sys.argv[1:]] or [1_000_000, 10_000_000]
    if len(sizes) == 1:
        save(f"memory-{sizes[0]}", {"driver": measure(sizes[0])})
        return
    for size in sizes:
        subprocess.run([sys.executable, "-m", "benchmarks.memory", str(size)], check=True)


if __name__ == "__main__":
    main()
