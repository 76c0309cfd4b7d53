"""Scoring under fire: `python -m benchmarks.soak [--minutes 60]`.

Pool, pieces and scores are in an S3 server, of whose answers one in twenty fails, comes late or is
cut off. Scorers are simulated; all else is real. Now and then a scorer is killed, the server gives
no answer for some seconds, or the driver is killed; then the same command is given again. When it
ends, every score is compared with what it must be, the pool grows by a file, and it goes on.

The result says how often what was killed, how many pools were completed, and how many pieces were
written. A command that ends with a traceback is a fault.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import psutil
import pyarrow as pa
import ray

from benchmarks.common import save
from benchmarks.sleeper import Sleeper
from instructdiff_ray.config.cluster import ClusterConfig, ScoreResources
from instructdiff_ray.config.data import DataConfig, ModelConfig
from instructdiff_ray.config.run import Config
from instructdiff_ray.demo.model import train_model
from instructdiff_ray.demo.pool import prose
from instructdiff_ray.errors import UserError
from instructdiff_ray.models.encoding import LIKELIHOOD, EncoderSpec
from instructdiff_ray.models.find import find_model
from instructdiff_ray.pool.files import source_files
from instructdiff_ray.pool.ingest import ingest
from instructdiff_ray.pool.partition import id_prefixes
from instructdiff_ray.progress import Progress
from instructdiff_ray.scoring import dataflow
from instructdiff_ray.scoring.plan import ScoreTarget
from instructdiff_ray.scoring.spec import ScoreSpec, ScoreTable
from instructdiff_ray.scoring.stage import score
from instructdiff_ray.scoring.stats import ScoringStats
from instructdiff_ray.selection.strategies import BASE, CALIBRATED
from instructdiff_ray.storage.artifacts import Storage
from instructdiff_ray.storage.filesystem import Folder
from tests.s3 import Server, serving

ROWS_PER_FILE = 30_000
ACTORS = 2
SLEEP_S = 0.002
TROUBLE = 0.05
# Seconds between two misfortunes, and of an outage of the store.
PAUSE_S, OUTAGE_S = (10, 40), (2, 20)


def expected(table: pa.Table, name: str) -> dict[str, np.ndarray]:
    """The scores of samples under a model: numbers that tell whose they are."""
    digits = id_prefixes(table).astype(np.float64) / 2**64
    return {measure: digits + len(name) + n for n, measure in enumerate(LIKELIHOOD)}


class KnownScores(Sleeper):
    """Gives what is expected."""

    sleep_s = SLEEP_S

    def scores(self, block: pa.Table, target: ScoreTarget) -> dict[str, np.ndarray]:
        return expected(block, target.name)


def check(table: ScoreTable, name: str) -> int:
    """The number of samples; each has the scores that it must have."""
    rows = 0
    for part in table.read(["sample_id", *LIKELIHOOD]):
        for measure, values in expected(part, name).items():
            assert np.array_equal(part[measure].to_numpy(), values), "a wrong score"
        rows += part.num_rows
    return rows


def drive(model_folder: str, uri: str) -> None:
    """Score the pool that is there, and check it: what is killed and given again."""
    ray.init(
        num_cpus=ACTORS + 2,
        num_gpus=ACTORS,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    resources = ScoreResources(
        min_actors=ACTORS, max_actors=ACTORS, gpus_per_actor=1, models_per_actor=2
    )
    config = Config(
        data=DataConfig(path=f"{uri}/data/"),
        cluster=ClusterConfig(score=resources),
        storage=f"{uri}/storage",
    )
    storage, progress = Storage(config.storage), Progress(sys.stdout)
    model = find_model(ModelConfig(base=model_folder))
    encoding, calibrated = EncoderSpec.of(config, model), replace(model, identity="calibrated")
    specs = [ScoreSpec(BASE, model, encoding), ScoreSpec(CALIBRATED, calibrated, encoding)]
    stats = ScoringStats()
    with (
        mock.patch.object(dataflow, "Scorer", KnownScores),
        mock.patch.object(dataflow, "rows_per_batch", lambda *_: 500),
    ):
        pool = ingest(config, source_files(config.data), model, storage, progress)
        scores = score(config, pool, specs, storage, progress, stats)
    for name, table in scores.items():
        assert check(table, name) == len(pool)
    print(json.dumps({"pool": len(pool), "scored": stats.samples}), flush=True)


class Soak:
    """What has happened so far."""

    def __init__(self, server: Server, model_folder: str, log: Path) -> None:
        self.server, self.log = server, log
        command = ["-m", "benchmarks.soak", "--drive", model_folder, server.uri]
        self.command = [sys.executable, *command]
        self.random = random.Random(0)
        self.count: Counter[str] = Counter()
        self.files = 0
        self.pool = 0
        self.faults: list[str] = []

    def run(self, seconds: float) -> None:
        """Give the command again and again."""
        end = time.monotonic() + seconds
        self.server.trouble = TROUBLE
        self.grow()
        while time.monotonic() < end:
            with self.log.open("w") as log:
                driver = subprocess.Popen(self.command, stdout=log, stderr=subprocess.STDOUT)
                self.disturb(driver, end)
            self.count["commands"] += 1
            self.judge(driver.returncode, self.log.read_text())

    def grow(self) -> None:
        """Another file of rows, all different."""
        first = self.files * ROWS_PER_FILE
        rows = (
            {"question": f"Double {n}?", "answer": f"It is {2 * n}."}
            for n in range(first, first + ROWS_PER_FILE)
        )
        data = "\n".join(map(json.dumps, rows)).encode()
        trouble, self.server.trouble = self.server.trouble, 0.0
        Folder(self.server.uri).write_bytes(f"data/{self.files:05}.jsonl", data)
        self.server.trouble = trouble
        self.files += 1

    def disturb(self, driver: subprocess.Popen[bytes], end: float) -> None:
        """Until the command ends, or the time is over."""
        while driver.poll() is None:
            with suppress(subprocess.TimeoutExpired):
                driver.wait(self.random.uniform(*PAUSE_S))
                return
            if time.monotonic() > end:
                kill_tree(driver.pid)
                driver.wait()
                return
            misfortune: Callable[[int], None] = self.random.choice(
                [self.kill_scorer, self.kill_scorer, self.cut_off_store, self.kill_driver]
            )
            misfortune(driver.pid)

    def kill_scorer(self, driver: int) -> None:
        """One, with the block that it works on."""
        with suppress(psutil.NoSuchProcess):
            children = psutil.Process(driver).children(recursive=True)
            scorers = [c for c in children if "KnownScores" in " ".join(c.cmdline())]
            if scorers:
                self.random.choice(scorers).kill()
                self.count["scorers killed"] += 1

    def cut_off_store(self, _: int) -> None:
        """No answer but 503 for some seconds."""
        self.server.trouble = 1.0
        time.sleep(self.random.uniform(*OUTAGE_S))
        self.server.trouble = TROUBLE
        self.count["outages of the store"] += 1

    def kill_driver(self, driver: int) -> None:
        """And Ray with it, as a machine that is taken away."""
        kill_tree(driver)
        self.count["drivers killed"] += 1

    def judge(self, status: int, log: str) -> None:
        """What became of a command."""
        if status == 0:
            line = json.loads(next(line for line in log.splitlines() if line.startswith("{")))
            self.count["pools completed"] += 1
            self.pool = line["pool"]
            assert self.pool == self.files * ROWS_PER_FILE, "samples are lost"
            self.grow()
        elif status > 0 and "Traceback" in log:
            self.count["tracebacks"] += 1
            self.faults.append(log[-3000:])
            print(log[-3000:], flush=True)
        elif status > 0:
            self.count["ended in one line"] += 1
        print(dict(self.count), self.pool, flush=True)


def kill_tree(pid: int) -> None:
    """A process and all that it has started."""
    with suppress(psutil.NoSuchProcess):
        for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)


def pieces_written(server: Server) -> int:
    """How often a piece was put, again after an answer that was lost too."""
    return sum(n for path, n in server.written.items() if "/piece-" in path)


def main() -> None:
    """Soak, or be what is soaked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", allow_abbrev=False)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--drive", nargs=2, metavar=("MODEL", "URI"))
    given = parser.parse_args()
    if given.drive:
        try:
            drive(*given.drive)
        except UserError as error:
            sys.exit(str(error))
        return
    with tempfile.TemporaryDirectory(dir="/var/tmp") as path, serving() as server:
        train_model(f"{path}/model", prose(size=400), steps=1)
        soak = Soak(server, f"{path}/model", Path(path, "log"))
        soak.run(given.minutes * 60)
        pieces = pieces_written(server)
    result: dict[str, Any] = {
        "minutes": given.minutes,
        "samples": soak.pool,
        "pieces_written": pieces,
        **soak.count,
        "faults": soak.faults,
    }
    print(result)
    save("soak", result)


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
