"""A simulated cluster of 8 machines with 8 GPUs each: `python -m benchmarks.scale 10000000`.

Fewer machines, GPUs or seconds of sleep show what one machine's processors can feed:
`python -m benchmarks.scale 1000000 --machines 1 --gpus 2 --sleep 0.0001`.

Machines, GPUs and the model are made up. All else is real: ingest, the scheduling of 64 actors,
reading, tokenising, moving blocks, writing shards, finding what is missing, gathering, ranking. The
model sleeps as long as 7 billion parameters would compute on an H100, twice, for samples of 300
tokens, at the share of its rate that is this project's goal. The samples themselves are short, for
this one machine tokenises what the processors of eight would.

The result says how busy the actors were from their first block to their last, the peak of memory of
each kind of process without what it shares with others, and the seconds of each stage.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import threading
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import ray
from ray.cluster_utils import Cluster

from benchmarks.common import save
from benchmarks.sleeper import Sleeper
from instructdiff_ray.config.cluster import ClusterConfig, ScoreResources
from instructdiff_ray.config.data import DataConfig, ModelConfig
from instructdiff_ray.config.run import Config
from instructdiff_ray.config.selection import SelectConfig
from instructdiff_ray.demo.model import train_model
from instructdiff_ray.demo.pool import prose
from instructdiff_ray.models.encoding import EncoderSpec
from instructdiff_ray.models.find import find_model
from instructdiff_ray.pool.files import source_files
from instructdiff_ray.pool.ingest import ingest
from instructdiff_ray.progress import Progress
from instructdiff_ray.scoring import dataflow
from instructdiff_ray.scoring.dataflow import ROWS_PER_BATCH
from instructdiff_ray.scoring.spec import ScoreSpec
from instructdiff_ray.scoring.stage import score
from instructdiff_ray.scoring.stats import ScoringStats
from instructdiff_ray.selection.batches import RankingInputs
from instructdiff_ray.selection.ranking import rank
from instructdiff_ray.selection.strategies import BASE, CALIBRATED, STRATEGIES
from instructdiff_ray.storage.artifacts import Storage

ROWS_PER_FILE = 250_000
# Of each sample: 2 operations × 7.6e9 weights × 300 tokens, at 65 % of 800e12 a second, twice.
SLEEP_S = 2 * (2 * 7.6e9 * 300) / (0.65 * 800e12)


class TimedSleeper(Sleeper):
    """A class of `__main__`, so Ray sends it to the actors with the `sleep_s` that main set."""


class MemoryWatch(threading.Thread):
    """The largest of each kind of process so far, and the most that all of them held, in MiB.

    What a process shares with others (libraries, Ray's object store) is left out.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.largest: dict[str, float] = defaultdict(float)
        self.most = 0.0
        self.start()

    def run(self) -> None:
        while True:
            total = 0.0
            for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
                try:
                    kind, memory = _kind(process), process.memory_info()
                except (psutil.NoSuchProcess, psutil.ZombieProcess):
                    continue
                unshared = (memory.rss - memory.shared) / 2**20
                total += unshared
                self.largest[kind] = max(self.largest[kind], unshared)
            self.most = max(self.most, total)
            time.sleep(2)

    def peaks(self) -> dict[str, int]:
        """The largest of each kind since the last call, in MiB."""
        largest, self.largest = self.largest, defaultdict(float)  # the thread writes to the new one
        return {kind: round(value) for kind, value in sorted(largest.items())}


def _kind(process: psutil.Process) -> str:
    if process.pid == psutil.Process().pid:
        return "driver"
    command = process.cmdline() or [process.name()]
    if command[0].startswith("ray::"):
        return command[0].split(".")[0] if "IDLE" not in command[0] else "ray::IDLE"
    if "python" in command[0]:
        return "python"
    return "ray-dashboard" if "ray-dashboard" in command[0] else Path(command[0]).name


def write_rows(folder: Path, rows: int) -> None:
    """Write short rows, all different."""
    folder.mkdir()
    for start in range(0, rows, ROWS_PER_FILE):
        with (folder / f"{start:012d}.jsonl").open("w") as file:
            for n in range(start, min(start + ROWS_PER_FILE, rows)):
                file.write(f'{{"question": "Double {n}?", "answer": "It is {2 * n}."}}\n')


def simulate(machines: int, gpus: int) -> Cluster:
    """A cluster that this process joins: a head, and machines with one CPU more than actors."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    for _ in range(machines):
        cluster.add_node(num_cpus=gpus + 1, num_gpus=gpus, object_store_memory=300 << 20)
    ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    return cluster


def measure(rows: int, machines: int, gpus: int) -> dict[str, Any]:
    """Ingest, score and rank this many rows; only scoring runs on the simulated cluster."""
    ray.init(num_cpus=2, log_to_driver=False, logging_level=logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    watch = MemoryWatch()
    actors = machines * gpus
    progress = Progress(sys.stderr, log_every_s=30)
    with tempfile.TemporaryDirectory(dir="/var/tmp") as path:
        folder = Path(path)
        train_model(str(folder / "model"), prose(size=400), steps=1)
        write_rows(folder / "pool", rows)
        resources = ScoreResources(
            min_actors=actors, max_actors=actors, gpus_per_actor=1, models_per_actor=2
        )
        config = Config(
            data=DataConfig(path=str(folder / "pool")),
            cluster=ClusterConfig(score=resources),
            storage=str(folder / "storage"),
        )
        storage = Storage(config.storage)
        model = find_model(ModelConfig(base=str(folder / "model")))
        encoding, calibrated = EncoderSpec.of(config, model), replace(model, identity="calibrated")
        specs = [ScoreSpec(BASE, model, encoding), ScoreSpec(CALIBRATED, calibrated, encoding)]
        memory = {}
        pool = ingest(config, source_files(config.data), model, storage, progress)
        memory["ingest"] = watch.peaks()
        ray.shutdown()
        cluster = simulate(machines, gpus)
        stats = ScoringStats()
        with (
            mock.patch.object(dataflow, "Scorer", TimedSleeper),
            # As many as a model of 7 billion parameters has; the one that is loaded is small.
            mock.patch.object(dataflow, "rows_per_batch", lambda *_: ROWS_PER_BATCH),
        ):
            scores = score(config, pool, specs, storage, progress, stats)
        memory["score"] = watch.peaks()
        ray.shutdown()
        cluster.shutdown()
        assert stats.samples == {BASE: rows, CALIBRATED: rows}, stats
        with progress.stage("select", "samples"):
            inputs = RankingInputs(
                STRATEGIES["instructdiff"], lambda _: SelectConfig(), guards=("typical",)
            )
            assert rank(pool, scores, inputs).table.num_rows == rows
        memory["select"] = watch.peaks()
    busy, waited = stats.throughput.busy_s, stats.throughput.waited_s
    return {
        "rows": rows,
        "machines": machines,
        "actors": actors,
        "sleep_s_per_block": round(TimedSleeper.sleep_s * ROWS_PER_BATCH, 2),
        "busy_between_blocks": round(busy / (busy + waited), 4),
        "busy_of_stage": round(busy / (actors * progress.seconds["score"]), 4),
        "seconds": {stage: round(seconds) for stage, seconds in progress.seconds.items()},
        "peak_mib": memory,
        "all_processes_mib": round(watch.most),
    }


def main() -> None:
    """Measure the sizes that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale")
    parser.add_argument("rows", type=int, nargs="*", default=[1_000_000, 10_000_000])
    parser.add_argument("--machines", type=int, default=8)
    parser.add_argument("--gpus", type=int, default=8, help="of each machine")
    parser.add_argument("--sleep", type=float, default=SLEEP_S, help="seconds for each sample")
    given = parser.parse_args()
    TimedSleeper.sleep_s = given.sleep
    for rows in given.rows:
        result = measure(rows, given.machines, given.gpus)
        print(result, flush=True)
        save(f"scale-{rows}-rows-{result['actors']}-actors", result)


if __name__ == "__main__":
    main()
