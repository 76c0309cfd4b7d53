"""Does the driver's memory stay small while a training set is large?

`python -m benchmarks.training_text MODEL [GiB]`

A pool of that much text, all of it in the warm-up subset, is ingested and calibrated on; each
sample is cut off behind a few tokens, so that the text is what is large. The memory is that of this
process, the driver's.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

import ray

from benchmarks.common import peak_mib, reset_peak, save
from benchmarks.corrupted import start_ray
from instructdiff_ray.config.data import DataConfig, ModelConfig
from instructdiff_ray.config.run import Config
from instructdiff_ray.config.training import CalibrateConfig
from instructdiff_ray.context import prepare
from instructdiff_ray.pipeline import calibrate_repeats, draw_warmup, ingest_pool
from instructdiff_ray.progress import Progress

SAMPLE = 1 << 16  # characters; a block of the pool has 4,096 samples
WORDS = "the text of a response that is much longer than any model will ever read of it "


def write_pool(path: Path, gib: float) -> int:
    """Samples whose responses have this much text together; gives their number."""
    count = int(gib * 2**30 / SAMPLE)
    response = WORDS * (SAMPLE // len(WORDS))
    with path.open("w") as file:
        for number in range(count):
            row = {"instruction": f"Say it {number} times.", "response": response}
            file.write(f"{json.dumps(row)}\n")
    return count


def main() -> None:
    """Measure the size that the command line names."""
    model, gib = sys.argv[1], float((sys.argv[2:] or ["3"])[0])
    start_ray()
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        path = Path(folder, "pool.jsonl")
        count = write_pool(path, gib)
        config = Config(
            data=DataConfig(path=str(path), over_long="truncate"),
            model=ModelConfig(base=model),
            calibrate=CalibrateConfig(
                ratio=1, epochs=1, learning_rate=1e-4, global_batch_size=1024, max_length=32
            ),
            storage=str(Path(folder, "storage")),
        )
        context = prepare(config, Progress(sys.stderr))
        pool = ingest_pool(context)
        warmup = draw_warmup(context, pool)
        assert len(warmup) == count
        reset_peak()
        began = time.perf_counter()
        calibrate_repeats(context, pool, [warmup])
        seconds = time.perf_counter() - began
    figures = {"text_gib": gib, "samples": count, "seconds": round(seconds)}
    save("training-text", {**figures, "driver_peak_mib": round(peak_mib())})
    ray.shutdown()


if __name__ == "__main__":
    main()
