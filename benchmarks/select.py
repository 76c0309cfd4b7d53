"""Selection over many rows, on the driver: `python -m benchmarks.select 10000000 100000000`.

From finished scores to every sample's fate, and the counts: read the index and the scores of two
models, filter and rank within four domains. The numbers are random. Seconds, and the peak of memory
above what an idle process holds; writing `ranking.parquet` is in `benchmarks.memory`.
"""

from __future__ import annotations

import binascii
import sys
import tempfile
import time
from multiprocessing import get_context

import numpy as np
import pyarrow as pa

from benchmarks.common import peak_mib, reset_peak, save
from instructdiff_ray.config.selection import SelectConfig
from instructdiff_ray.models.encoding import LIKELIHOOD
from instructdiff_ray.pool.partition import BUCKETS
from instructdiff_ray.pool.pool import INDEX, Pool
from instructdiff_ray.scoring.store import piece_schema
from instructdiff_ray.selection.ranking import Criteria, fate_counts, rank
from instructdiff_ray.selection.strategies import STRATEGIES
from instructdiff_ray.storage.artifacts import Finished
from instructdiff_ray.storage.filesystem import Folder

PIECE = piece_schema(LIKELIHOOD)
CRITERIA = Criteria(STRATEGIES["instructdiff"], lambda _: SelectConfig())
DOMAINS = ["code", "general", "math", "medical"]


def write_scores(folder: Folder, rows: int) -> None:
    """An index and scores of two models, a bucket a row group, as the pipeline leaves them."""
    rng = np.random.default_rng(0)
    each = rows // BUCKETS
    told = pa.nulls(each, pa.string())
    with (
        folder.open_table("index.parquet", INDEX) as index,
        folder.open_table("base/scores.parquet", PIECE) as base,
        folder.open_table("calibrated/scores.parquet", PIECE) as calibrated,
    ):
        for bucket in range(BUCKETS):
            numbers = np.frombuffer(rng.bytes(16 * each), np.uint8).reshape(each, 16).copy()
            numbers[:, 0] = bucket * 4
            digits = np.sort(np.frombuffer(binascii.hexlify(numbers.tobytes()), "S32"))
            ids = pa.array(digits.astype("U32"))
            domain = pa.DictionaryArray.from_arrays(
                rng.integers(0, len(DOMAINS), each, np.int32), DOMAINS
            )
            tokens = pa.array(rng.integers(20, 500, each, np.int32))
            index(pa.table([ids, domain, tokens, tokens, tokens], schema=INDEX))
            for write in (base, calibrated):
                values = [pa.array(rng.normal(2, 0.5, each)) for _ in range(2)]
                write(pa.table([ids, tokens, *values, told, told], schema=PIECE))


def measure(rows: int) -> dict[str, float]:
    """Seconds and peak of memory of one selection, and what it selected."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as path:
        folder = Folder(path)
        # In a process of its own: what it leaves in the allocators is not the selection's.
        writer = get_context("spawn").Process(target=write_scores, args=(folder, rows))
        writer.start()
        writer.join()
        assert writer.exitcode == 0
        count = rows // BUCKETS * BUCKETS
        pool = Pool(folder, "key", "digest", [], [], {"read": count, "rejected": {}, "pool": count})
        scores = {role: Finished(folder.sub(role), {}) for role in ("base", "calibrated")}
        reset_peak()
        idle, began = peak_mib(), time.monotonic()
        selected = fate_counts(rank(pool, scores, CRITERIA))["selected"]
        seconds = time.monotonic() - began
    result = {"rows": count, "selected": selected, "seconds": round(seconds, 1)}
    return result | {"peak_mib": round(peak_mib() - idle)}


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
