"""The driver's memory over a synthetic pool: `python -m benchmarks.memory 1000000 10000000`.

It does all that the driver does behind the workers, for pools of these sizes: drop duplicates and
write the index, find what is not scored, gather the scores of two models, rank, and write the
ranking. The numbers are random and no model runs. Each size has a process of its own.
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
from instructdiff_ray.models.encoding import LIKELIHOOD, EncoderSpec
from instructdiff_ray.models.model import Model
from instructdiff_ray.pool.dedup import Deduplicator
from instructdiff_ray.pool.ingest import RECEIPT, ROWS_PER_PART
from instructdiff_ray.pool.pool import Pool
from instructdiff_ray.results.outputs import write_ranking
from instructdiff_ray.scoring.dataflow import ROWS_PER_BATCH
from instructdiff_ray.scoring.plan import ScoreTarget, find_lacking
from instructdiff_ray.scoring.spec import ScoreTable
from instructdiff_ray.scoring.store import gather, shard_schema, write_shards
from instructdiff_ray.selection.batches import RankingInputs
from instructdiff_ray.selection.counts import fate_counts
from instructdiff_ray.selection.ranking import rank
from instructdiff_ray.selection.strategies import BASE, CALIBRATED, STRATEGIES
from instructdiff_ray.storage.artifacts import FinishedArtifact
from instructdiff_ray.storage.filesystem import Folder

SCORE_NAMES = (BASE, CALIBRATED)
MODEL = Model("", None, False, "", None)
ENCODING = EncoderSpec(MODEL, TemplateConfig(), 1, False)


def ids(count: int, rng: np.random.Generator) -> pa.Array:
    """Random sample ids."""
    digits = binascii.hexlify(rng.bytes(16 * count))
    return pa.array(np.frombuffer(digits, "S32").astype("U32"))


def receipts(rows: int) -> Iterator[pa.Table]:
    """The receipts of a pool of valid rows, as the workers send them."""
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


def leave_shards(pool: Pool, folder: Folder, seed: int) -> None:
    """Write shards as scorers leave them, but in the order of the ids, which does not help to
    gather them."""
    rng = np.random.default_rng(seed)
    for index in pool.index():
        for start in range(0, index.num_rows, ROWS_PER_BATCH):
            batch = index.slice(start, ROWS_PER_BATCH)
            values = [pa.array(rng.normal(2, 0.5, batch.num_rows)) for _ in LIKELIHOOD]
            reason = detail = pa.nulls(batch.num_rows, pa.string())
            columns = [batch["sample_id"], batch["response_tokens"], *values, reason, detail]
            write_shards(folder, pa.table(columns, schema=shard_schema(LIKELIHOOD)))


def measure(rows: int) -> dict[str, Any]:
    """The seconds of each step, and its peak of memory above what an idle driver holds, in MiB."""
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
            deduplicator = Deduplicator(False, folder)
            for receipt in receipts(rows):
                deduplicator.add(receipt)
            info = deduplicator.finish()
        pool = Pool(folder, "key", info["digest"], [], [], info["counts"])
        targets = [
            ScoreTarget(name, MODEL, ENCODING, folder.sub(f"shards-{name}")) for name in SCORE_NAMES
        ]
        for seed, target in enumerate(targets):
            leave_shards(pool, target.shards, seed)
        with step("find"):
            assert not find_lacking(pool, targets)
        with step("gather"):
            for target in targets:
                gather(pool, {None: target.shards}, LIKELIHOOD, folder.sub(target.name))
        scores = {
            name: ScoreTable(FinishedArtifact("key", folder.sub(name), {}), LIKELIHOOD)
            for name in SCORE_NAMES
        }
        with step("select"):
            inputs = RankingInputs(
                STRATEGIES["instructdiff"], lambda _: SelectConfig(), guards=("typical",)
            )
            ranking = rank(pool, scores, inputs)
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
