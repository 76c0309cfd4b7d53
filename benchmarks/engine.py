"""The Ray pipeline against a bare scoring loop over the same rows: `python -m benchmarks.engine`.

The loop has its rows tokenised in memory and does nothing but score. The pipeline reads the pool,
tokenises, scores, writes shards and keeps its books. What counts of the pipeline is its steady
state, from the end of the first block to the end of the last; starting up is reported apart.

Without a GPU both score with one thread: the other cores stand for those that a GPU has beside it.
The small shape scores as many samples a second as one H100 might with half a billion parameters.
"""

from __future__ import annotations

import logging
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow as pa
import ray
import torch
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from benchmarks.common import save
from benchmarks.scoring import batched
from instructdiff_ray.config.cluster import ClusterConfig, ScoreResources
from instructdiff_ray.config.data import DataConfig, ModelConfig
from instructdiff_ray.config.run import Config
from instructdiff_ray.demo.model import train_model
from instructdiff_ray.demo.pool import prose, write_pool
from instructdiff_ray.engine.metrics import SampleScorer
from instructdiff_ray.models.encoding import EncoderSpec
from instructdiff_ray.models.find import find_model
from instructdiff_ray.models.model import Model
from instructdiff_ray.pool.dataset import read_pool, stream
from instructdiff_ray.pool.files import source_files
from instructdiff_ray.pool.ingest import ingest
from instructdiff_ray.pool.pool import Pool
from instructdiff_ray.progress import Progress
from instructdiff_ray.scoring import dataflow
from instructdiff_ray.scoring.actor import PAYING_TOKENS, Scorer
from instructdiff_ray.scoring.blocks import token_lists
from instructdiff_ray.scoring.dataflow import ROWS_PER_BATCH, Tokenize, score_blocks
from instructdiff_ray.scoring.plan import ScorePass, ScoreTarget
from instructdiff_ray.selection.strategies import BASE, CALIBRATED
from instructdiff_ray.storage.artifacts import Storage
from instructdiff_ray.storage.filesystem import Folder

GPU = torch.cuda.is_available()
# Each model's hidden size, layers and heads, and the rows that it scores.
SHAPES = {
    "cuda-0.5b": (896, 24, 14, 65_536),
    "cpu-small": (32, 1, 2, 40_960),
    "cpu-large": (128, 2, 2, 6_144),
}
BUDGET = PAYING_TOKENS["cuda" if GPU else "cpu"]
SCORE_NAMES = (BASE, CALIBRATED)


class OneThread(Scorer):
    """A scorer that leaves the other cores to the pipeline."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        torch.set_num_threads(1)


def make_model(folder: Path, shape: tuple[int, int, int, int]) -> Model:
    """A model of this shape with random weights, and the tokenizer of the demo."""
    hidden, layers, heads, _ = shape
    train_model(str(folder / "demo"), prose(size=400), steps=1)
    tokenizer = AutoTokenizer.from_pretrained(folder / "demo")
    torch.manual_seed(0)
    Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=hidden,
            intermediate_size=4 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            max_position_embeddings=4096,
        )
    ).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return find_model(ModelConfig(base=str(folder / "model")))


def bare(config: Config, pool: Pool, model: Model) -> float:
    """Samples a second under two models, from tokens in memory."""
    tokenize = Tokenize([EncoderSpec.of(config, model)], None)
    blocks = stream(read_pool(pool, ["sample_id", "parts"]), "tokenise")
    table = pa.concat_tables(tokenize(block) for block in blocks)
    ids, response = token_lists(table, 0)
    rows = list(zip(ids, response, strict=True))
    device = torch.device("cuda" if GPU else "cpu")
    scorers = [SampleScorer(model.load(config.cluster.precision, device)) for _ in SCORE_NAMES]
    batched(scorers, rows[:ROWS_PER_BATCH], BUDGET)
    began = time.perf_counter()
    for start in range(0, len(rows), ROWS_PER_BATCH):
        batched(scorers, rows[start : start + ROWS_PER_BATCH], BUDGET)
    return len(rows) / (time.perf_counter() - began)


def pipeline(config: Config, pool: Pool, model: Model, folder: Folder) -> dict[str, float]:
    """Samples a second in the steady state, and what its scorer did with its time."""
    encoding = EncoderSpec.of(config, model)
    targets = [ScoreTarget(name, model, encoding, folder.sub(name)) for name in SCORE_NAMES]
    blocks, ends = [], []
    began = time.perf_counter()
    with mock.patch.object(dataflow, "Scorer", Scorer if GPU else OneThread):
        for receipt in score_blocks(
            config, pool, ScorePass(targets, None, 0, len(pool)), float(GPU)
        ):
            blocks += receipt.to_pylist()
            ends += [time.perf_counter()] * receipt.num_rows
    steady = blocks[1:]
    busy = sum(block["throughput"]["busy_s"] for block in steady)
    waited = sum(block["throughput"]["waited_s"] for block in steady)
    samples = sum(block["samples"][0] for block in steady)
    return {
        "samples_per_second": samples / (busy + waited),
        "waited": waited / (busy + waited),
        "first_block_after_s": ends[0] - began,
        "seconds": ends[-1] - began,
    }


def measure(name: str) -> dict[str, Any]:
    """The pipeline against the loop, for one shape."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as path:
        folder = Path(path)
        *_, rows = SHAPES[name]
        write_pool(str(folder / "pool.jsonl"), seed=1, size=rows)
        model = make_model(folder, SHAPES[name])
        resources = ScoreResources(gpus_per_actor=float(GPU), tokens_per_batch=BUDGET)
        config = Config(
            data=DataConfig(path=str(folder / "pool.jsonl"), domain_column="domain"),
            cluster=ClusterConfig(precision="bf16" if GPU else "fp32", score=resources),
            storage=str(folder / "storage"),
        )
        files, storage = source_files(config.data), Storage(config.storage)
        pool = ingest(config, files, model, storage, Progress(sys.stderr))
        runs = []
        for number in range(2):
            loop = bare(config, pool, model)
            engine = pipeline(config, pool, model, Folder(str(folder / f"shards-{number}")))
            runs.append({"bare_samples_per_second": loop, **engine})
    best = {
        key: max(run[key] for run in runs)
        for key in ("bare_samples_per_second", "samples_per_second")
    }
    ratio = best["samples_per_second"] / best["bare_samples_per_second"]
    return {"samples": len(pool), "pipeline_against_loop": round(ratio, 3), "runs": runs}


def main() -> None:
    """Measure the named shapes, or all that this machine can."""
    torch.set_num_threads(1)
    # Logical CPUs, as jobs/ start Ray on one machine.
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    device = "cuda" if GPU else "cpu"
    names = sys.argv[1:] or [name for name in SHAPES if name.startswith(device)]
    for name in names:
        result = measure(name)
        print(name, result, flush=True)
        save(f"engine-{name}", result)


if __name__ == "__main__":
    main()
