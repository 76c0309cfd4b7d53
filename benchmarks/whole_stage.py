"""The whole scoring stage with Ray against the protocol of one sample at a time:
`python -m benchmarks.whole_stage MODEL POOL [--rows 3000]`.

The stage starts its actors, reads, tokenises, scores under two models, writes, folds and gathers;
Ray itself runs already. The protocol has its samples tokenised and its models loaded. Both are run
twice, in turns, and the faster run of each counts.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from dataclasses import replace

import torch

from benchmarks.common import save
from benchmarks.corrupted import start_ray
from benchmarks.scoring import Sample, one_at_a_time
from instructdiff_ray.config.data import DataConfig, ModelConfig
from instructdiff_ray.config.run import Config
from instructdiff_ray.context import prepare
from instructdiff_ray.models.encoding import EncoderSpec
from instructdiff_ray.models.model import Model
from instructdiff_ray.models.template import Encoded
from instructdiff_ray.pipeline import ingest_pool
from instructdiff_ray.pool.dataset import read_pool, stream
from instructdiff_ray.pool.pool import Pool
from instructdiff_ray.progress import Progress
from instructdiff_ray.sample import Part
from instructdiff_ray.scoring.spec import ScoreSpec
from instructdiff_ray.scoring.stage import score
from instructdiff_ray.scoring.stats import ScoringStats
from instructdiff_ray.selection.strategies import BASE, CALIBRATED
from instructdiff_ray.storage.artifacts import Storage


def tokenised(pool: Pool, encoding: EncoderSpec) -> list[Sample]:
    """The pool's samples, in memory."""
    rows: list[Sample] = []
    for table in stream(read_pool(pool, ["parts"]), "tokenise"):
        samples = [[Part(**part) for part in parts] for parts in table["parts"].to_pylist()]
        encoded = encoding.encoder().encode(samples)
        rows += [(each.input_ids, each.response) for each in encoded if isinstance(each, Encoded)]
    return rows


def stage_s(config: Config, pool: Pool, model: Model) -> float:
    """The seconds of the stage, in an empty storage."""
    encoding, progress = EncoderSpec.of(config, model), Progress(sys.stderr)
    models = {BASE: model, CALIBRATED: replace(model, identity="calibrated")}
    specs = [ScoreSpec(name, each, encoding) for name, each in models.items()]
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        began = time.perf_counter()
        score(config, pool, specs, Storage(folder), progress, ScoringStats())
        return time.perf_counter() - began


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("model")
    parser.add_argument("pool")
    parser.add_argument("--rows", type=int, default=3000)
    arguments = parser.parse_args()
    start_ray()
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        config = Config(
            data=DataConfig(path=arguments.pool, limit=arguments.rows),
            model=ModelConfig(base=arguments.model),
            storage=folder,
        )
        context = prepare(config, Progress(sys.stderr))
        pool = ingest_pool(context)
        rows = tokenised(pool, EncoderSpec.of(config, context.base))
        torch.set_num_threads(len(os.sched_getaffinity(0)))  # as the scorer does
        models = [context.base.load("fp32").eval() for _ in range(2)]
        singly, stage = [], []
        for _ in range(2):
            began = time.perf_counter()
            one_at_a_time(models, rows)
            singly.append(time.perf_counter() - began)
            stage.append(stage_s(config, pool, context.base))
    result = {
        "samples": len(rows),
        "tokens": sum(len(ids) for ids, _ in rows),
        "seconds_one_at_a_time": round(min(singly), 1),
        "seconds_of_the_stage": round(min(stage), 1),
        "times_faster": round(min(singly) / min(stage), 2),
    }
    print(result)
    save("whole-stage", result)


if __name__ == "__main__":
    main()
