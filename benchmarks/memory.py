"""What the driver does behind the workers, over a synthetic pool:
`python -m benchmarks.memory 1000000 10000000`.

Parts of a pool and pieces of two models' scores are written as workers write them, with random
numbers; no model runs. Then the steps of a run over them: find duplicates and write the index, find
what is not scored (what is left of pieces is folded first), gather, rank, write the ranking. Of
each step: seconds, those that the driver's processors worked, and the driver's peak of memory,
without pages of files. Each size has a process of its own.
"""

from __future__ import annotations

import binascii
import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from benchmarks.common import OwnMemory, save
from instructdiff_ray.config.data import TemplateConfig
from instructdiff_ray.config.selection import SelectConfig
from instructdiff_ray.models.encoding import LIKELIHOOD, EncoderSpec
from instructdiff_ray.models.model import Model
from instructdiff_ray.pool.chunks import ROWS_PER_CHUNK
from instructdiff_ray.pool.dedup import deduplicate
from instructdiff_ray.pool.pool import ROWS, Pool
from instructdiff_ray.pool.tasks import results, task
from instructdiff_ray.results.outputs import write_ranking
from instructdiff_ray.scoring.plan import ScoreTarget, find_lacking
from instructdiff_ray.scoring.shards import fold_pieces, shard_schema, write_piece
from instructdiff_ray.scoring.spec import ScoreTable
from instructdiff_ray.scoring.store import gather
from instructdiff_ray.selection.batches import RankingInputs
from instructdiff_ray.selection.ranking import rank
from instructdiff_ray.selection.strategies import BASE, CALIBRATED, STRATEGIES
from instructdiff_ray.storage.artifacts import FinishedArtifact
from instructdiff_ray.storage.filesystem import Folder

SCORE_NAMES = (BASE, CALIBRATED)
MODEL = Model("", None, False, "", None)
ENCODING = EncoderSpec(MODEL, TemplateConfig(), 1, False)
CHUNKS_PER_TASK = 64
PIECES_PER_FOLD = 1024
ROWS_PER_PIECE = 1024


def sample_ids(first: int, count: int) -> list[str]:
    """Random ids, the same for the same rows of the pool; one in a hundred comes twice."""
    rng = np.random.default_rng(first)
    digits = binascii.hexlify(rng.bytes(16 * count))
    ids = np.frombuffer(digits, "S32").copy()
    again = rng.integers(0, count, count // 100)
    ids[again] = ids[rng.integers(0, count, len(again))]
    return ids.astype("U32").tolist()


def write_parts(first: int, rows: int, folder: Folder) -> None:
    """The parts of some chunks, as ingest writes them, but without text."""
    for start in range(first, min(rows, first + CHUNKS_PER_TASK * ROWS_PER_CHUNK), ROWS_PER_CHUNK):
        count = min(ROWS_PER_CHUNK, rows - start)
        tokens = pa.array(np.random.default_rng(start).integers(20, 500, count, np.int32))
        columns = {
            "sample_id": sample_ids(start, count),
            "domain": ["general"] * count,
            "tokens": tokens,
            "response_tokens": tokens,
            "instruction_tokens": tokens,
            "truncated": [False] * count,
        }
        nulls = {name: pa.nulls(count) for name in ROWS.names if name not in columns}
        table = pa.table({**columns, **nulls}).select(ROWS.names).cast(ROWS)
        folder.write_table(f"part-{start // ROWS_PER_CHUNK:07}-0000000-last.parquet", table)


def write_pieces(number: int, pool: Pool, folders: list[Folder]) -> None:
    """The pieces of one partition under each model, folded as they are while scorers work."""
    index, rng = pool.read_partition(number), np.random.default_rng(number)
    index = index.take(rng.permutation(index.num_rows))
    for folder in folders:
        names = []
        for start in range(0, index.num_rows, ROWS_PER_PIECE):
            batch = index.slice(start, ROWS_PER_PIECE)
            values = [pa.array(rng.normal(2, 0.5, batch.num_rows)) for _ in LIKELIHOOD]
            reason = detail = pa.nulls(batch.num_rows, pa.string())
            columns = [batch["sample_id"], batch["response_tokens"], *values, reason, detail]
            table = pa.table(columns, schema=shard_schema(LIKELIHOOD))
            names.append(write_piece(folder, table)[0])
            if len(names) == PIECES_PER_FOLD:
                fold_pieces(folder, names)
                names = []


def measure(rows: int) -> dict[str, Any]:
    """The figures of each step."""
    ray.init(num_cpus=2, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    results([task(sample_ids)(0, 1)] * 2)
    figures: dict[str, Any] = {"rows": rows, "idle_mib": round(OwnMemory.now())}

    @contextmanager
    def step(name: str) -> Iterator[None]:
        began, worked = time.monotonic(), time.process_time()
        with OwnMemory() as memory:
            yield
        seconds, worked = time.monotonic() - began, time.process_time() - worked
        peak = round(memory.peak - figures["idle_mib"])
        figures[name] = {
            "seconds": round(seconds, 1),
            "driver_cpu_s": round(worked, 1),
            "peak_mib": peak,
        }
        print(
            f"{rows:>12,} {name:<10}{seconds:8.1f} s{worked:8.1f} s of the driver {peak:8} MiB",
            flush=True,
        )

    with tempfile.TemporaryDirectory(dir="/var/tmp") as path:
        folder = Folder(path)
        starts = range(0, rows, CHUNKS_PER_TASK * ROWS_PER_CHUNK)
        results([task(write_parts)(start, rows, folder) for start in starts])
        with step("index"):
            parts = sorted(name for name in folder.sizes() if name.startswith("part-"))
            info = deduplicate(parts, False, folder)
        pool = Pool(folder, "key", info["digest"], parts, info["partitions"], False, info["counts"])
        targets = [
            ScoreTarget(name, MODEL, ENCODING, folder.sub(f"shards-{name}")) for name in SCORE_NAMES
        ]
        folders = [target.shards for target in targets]
        write = task(write_pieces)
        results([write(n, pool, folders) for n in range(pool.partitions)])
        with step("find"):
            assert not find_lacking(pool, targets)
        with step("gather"):
            for target in targets:
                gather(pool, {None: target.shards}, LIKELIHOOD, folder.sub(target.name))
        finished = {"partitions": pool.partitions}
        scores = {
            name: ScoreTable(FinishedArtifact("key", folder.sub(name), finished), LIKELIHOOD)
            for name in SCORE_NAMES
        }
        with step("select"):
            inputs = RankingInputs(
                STRATEGIES["instructdiff"], lambda _: SelectConfig(), guards=("typical",)
            )
            ranking = rank(pool, scores, inputs)
        with step("write"):
            write_ranking(folder.sub("run"), ranking, set())
        assert ranking.table.num_rows == len(pool)
    ray.shutdown()
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
