"""What the driver does behind the workers, over a synthetic pool:
`python -m benchmarks.memory [--folded] 1000000 10000000`.

Parts of a pool and pieces of two models' scores are written as workers write them, with random
numbers; no model runs. Then the steps of a run over them: find duplicates and write the index, find
what is not scored (what is left of pieces is folded first), gather, rank, write the ranking. Of
each step: seconds, those that the driver's processors worked, and the driver's peak of memory,
without pages of files. Each size has a process of its own.

With `--folded` it begins at the index and at pieces that are folded, as a run does whose pool is
ingested and scored: at a hundred million rows the parts and pieces before would take hours here.
"""

from __future__ import annotations

import argparse
import binascii
import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
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
from instructdiff_ray.pool.partition import (
    MOST_PARTITIONS,
    partition_bounds,
    partition_count,
    partition_file,
)
from instructdiff_ray.pool.pool import INDEX, ROWS, Pool
from instructdiff_ray.pool.tasks import results, task
from instructdiff_ray.pool.warmup import draw_subset
from instructdiff_ray.results.outputs import write_ranking
from instructdiff_ray.scoring.plan import ScoreTarget, find_lacking
from instructdiff_ray.scoring.shards import SNAPSHOT, fold_pieces, shard_schema, write_piece
from instructdiff_ray.scoring.spec import ScoreTable
from instructdiff_ray.scoring.store import gather
from instructdiff_ray.selection.batches import RankingInputs
from instructdiff_ray.selection.ranking import rank
from instructdiff_ray.selection.strategies import BASE, CALIBRATED, STRATEGIES
from instructdiff_ray.storage.artifacts import MANIFEST, FinishedArtifact
from instructdiff_ray.storage.filesystem import Folder

SCORE_NAMES = (BASE, CALIBRATED)
MODEL = Model("", None, False, "", None)
ENCODING = EncoderSpec(MODEL, TemplateConfig(), 1, False)
CHUNKS_PER_TASK = 64
PIECES_PER_FOLD = 1024
ROWS_PER_PIECE = 1024
WARMUP_RATIO = 0.001


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


def write_folded(number: int, partitions: int, rows: int, folder: Folder) -> None:
    """One partition of an index, and of a snapshot under each model."""
    count, rng = rows // partitions, np.random.default_rng(number)
    low, _ = partition_bounds(number, partitions)
    random = np.frombuffer(rng.bytes(16 * count), np.uint8).reshape(count, 16).copy()
    first = int(low, 16) + rng.integers(0, MOST_PARTITIONS // partitions, count)
    random[:, 0], random[:, 1] = first >> 4, (first & 15) << 4 | random[:, 1] & 15
    ids = pa.array(np.sort(np.frombuffer(binascii.hexlify(random.tobytes()), "S32")).astype("U32"))
    tokens = pa.array(rng.integers(20, 500, count, np.int32))
    domain = pa.DictionaryArray.from_arrays(np.zeros(count, np.int32), ["general"])
    index = pa.table([ids, domain, tokens, tokens, tokens], schema=INDEX)
    folder.write_table(partition_file("index", number), index)
    reason = detail = pa.nulls(count, pa.string())
    for name in SCORE_NAMES:
        values = [pa.array(rng.normal(2, 0.5, count)) for _ in LIKELIHOOD]
        scores = pa.table([ids, tokens, *values, reason, detail], schema=shard_schema(LIKELIHOOD))
        snapshot = folder.sub(f"shards-{name}/{SNAPSHOT}0")
        snapshot.write_table(partition_file("scores", number), scores)


def folded_pool(rows: int, folder: Folder) -> Pool:
    """A pool without parts, whose samples all have scores under each model."""
    partitions = partition_count(rows)
    write = task(write_folded)
    results([write(n, partitions, rows, folder) for n in range(partitions)])
    count = rows // partitions * partitions
    for name in SCORE_NAMES:
        manifest = {"rows": count, "partitions": partitions, "folded": []}
        folder.sub(f"shards-{name}/{SNAPSHOT}0").write_json(MANIFEST, manifest)
    counts = {"read": count, "rejected": {}, "pool": count}
    return Pool(folder, "key", "digest", [], partitions, False, counts)


def pool_of_parts(rows: int, folder: Folder, step: Callable[[str], Any]) -> Pool:
    """A pool from its parts, each sample with a piece's row under each model."""
    starts = range(0, rows, CHUNKS_PER_TASK * ROWS_PER_CHUNK)
    results([task(write_parts)(start, rows, folder) for start in starts])
    with step("index"):
        parts = sorted(name for name in folder.sizes() if name.startswith("part-"))
        info = deduplicate(parts, False, folder)
    pool = Pool(folder, "key", info["digest"], parts, info["partitions"], False, info["counts"])
    write, folders = task(write_pieces), [folder.sub(f"shards-{name}") for name in SCORE_NAMES]
    results([write(n, pool, folders) for n in range(pool.partitions)])
    return pool


def measure(rows: int, folded: bool) -> dict[str, Any]:
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
        pool = folded_pool(rows, folder) if folded else pool_of_parts(rows, folder, step)
        targets = [
            ScoreTarget(name, MODEL, ENCODING, folder.sub(f"shards-{name}")) for name in SCORE_NAMES
        ]
        with step("draw"):
            assert draw_subset(pool, pool.domains(), WARMUP_RATIO, seed=0)
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
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", type=int, nargs="*", default=[1_000_000, 10_000_000])
    parser.add_argument("--folded", action="store_true")
    asked = parser.parse_args()
    if len(asked.rows) == 1:
        name = f"memory-{'folded-' * asked.folded}{asked.rows[0]}"
        save(name, {"driver": measure(asked.rows[0], asked.folded)})
        return
    for rows in asked.rows:
        command = [sys.executable, "-m", "benchmarks.memory", *["--folded"] * asked.folded]
        subprocess.run([*command, str(rows)], check=True)


if __name__ == "__main__":
    main()
