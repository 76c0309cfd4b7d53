"""Selection over many rows, on the driver: `python -m benchmarks.select 10000000 100000000`.

It goes from finished scores to every sample's fate and the counts: it reads the index and the
scores of two models, and filters and ranks within four domains. The numbers are random. The result
is the seconds, and the peak of memory above what an idle process holds, without pages of files.
Writing `ranking.parquet` is measured in `benchmarks.memory`.
"""

from __future__ import annotations

import binascii
import sys
import tempfile
import time
from multiprocessing import get_context

import numpy as np
import pyarrow as pa

from benchmarks.common import OwnMemory, save
from instructdiff_ray.config.selection import SelectConfig
from instructdiff_ray.models.encoding import LIKELIHOOD
from instructdiff_ray.pool.partition import (
    MOST_PARTITIONS,
    partition_bounds,
    partition_count,
    partition_file,
)
from instructdiff_ray.pool.pool import INDEX, Pool
from instructdiff_ray.scoring.shards import shard_schema
from instructdiff_ray.scoring.spec import SCORES, ScoreTable
from instructdiff_ray.selection.batches import RankingInputs
from instructdiff_ray.selection.counts import fate_counts
from instructdiff_ray.selection.ranking import rank
from instructdiff_ray.selection.strategies import BASE, CALIBRATED, STRATEGIES
from instructdiff_ray.storage.artifacts import FinishedArtifact
from instructdiff_ray.storage.filesystem import Folder

SCORE_SCHEMA = shard_schema(LIKELIHOOD)
INPUTS = RankingInputs(STRATEGIES["instructdiff"], lambda _: SelectConfig(), guards=("typical",))
DOMAINS = ["code", "general", "math", "medical"]


def write_scores(folder: Folder, rows: int) -> None:
    """Write an index and the scores of two models as the pipeline does."""
    rng, partitions = np.random.default_rng(0), partition_count(rows)
    count = rows // partitions
    reason = detail = pa.nulls(count, pa.string())
    for number in range(partitions):
        low, _ = partition_bounds(number, partitions)
        random = np.frombuffer(rng.bytes(16 * count), np.uint8).reshape(count, 16).copy()
        first = int(low, 16) + rng.integers(0, MOST_PARTITIONS // partitions, count)
        random[:, 0], random[:, 1] = first >> 4, (first & 15) << 4 | random[:, 1] & 15
        digits = np.sort(np.frombuffer(binascii.hexlify(random.tobytes()), "S32"))
        ids = pa.array(digits.astype("U32"))
        domain = pa.DictionaryArray.from_arrays(
            rng.integers(0, len(DOMAINS), count, np.int32), DOMAINS
        )
        tokens = pa.array(rng.integers(20, 500, count, np.int32))
        index = pa.table([ids, domain, tokens, tokens, tokens], schema=INDEX)
        folder.write_table(partition_file("index", number), index)
        for name in (BASE, CALIBRATED):
            values = [pa.array(rng.normal(2, 0.5, count)) for _ in LIKELIHOOD]
            scores = pa.table([ids, tokens, *values, reason, detail], schema=SCORE_SCHEMA)
            folder.sub(name).write_table(partition_file(SCORES, number), scores)


def measure(rows: int) -> dict[str, float]:
    """The seconds and the peak of memory of one selection, and how many it selected."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as path:
        folder = Folder(path)
        # In a process of its own, for what it leaves in the allocators is not the selection's.
        writer = get_context("spawn").Process(target=write_scores, args=(folder, rows))
        writer.start()
        writer.join()
        assert writer.exitcode == 0
        partitions = partition_count(rows)
        count = rows // partitions * partitions
        counts = {"read": count, "rejected": {}, "pool": count}
        pool = Pool(folder, "key", "digest", [], partitions, False, counts)
        info = {"partitions": partitions}
        scores = {
            name: ScoreTable(FinishedArtifact("key", folder.sub(name), info), LIKELIHOOD)
            for name in (BASE, CALIBRATED)
        }
        idle, began = OwnMemory.now(), time.monotonic()
        with OwnMemory() as memory:
            selected = fate_counts(rank(pool, scores, INPUTS))["selected"]
        seconds = time.monotonic() - began
    result = {"rows": count, "selected": selected, "seconds": round(seconds, 1)}
    return result | {"peak_mib": round(memory.peak - idle)}


def main() -> None:
    """Measure the sizes that the command line names."""
    sizes = [int(size) for size in sys.argv[1:]] or [10_000_000, 100_000_000]
    results = []
    for size in sizes:
        results.append(measure(size))
        print(results[-1], flush=True)
    save("select", {"sizes": results})


if __name__ == "__main__":
    main()
