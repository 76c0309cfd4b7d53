"""What LoRA calibration saves, and what it selects: `python -m benchmarks.lora [MODEL POOL …]`.

Without arguments it measures the peak memory of a training step and of a scorer, with and without
an adapter, for a model of the shape of Qwen2.5-0.5B with random weights. With a model and pools it
compares selections from some samples of each pool: after training all parameters, after training an
adapter, and after training all parameters with another seed. That seed draws another warm-up
subset, so the last shows how much two runs of the paper's method differ by themselves.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

from benchmarks.common import peak_mib, reset_peak, save
from benchmarks.corrupted import (
    CALIBRATE,
    FOLDER,
    draw_samples,
    select_last,
    settings,
    start_ray,
    write,
)
from instructdiff_ray.config.data import DataConfig
from instructdiff_ray.config.run import Config
from instructdiff_ray.config.training import CalibrateConfig
from instructdiff_ray.engine.batch import Batch
from instructdiff_ray.engine.metrics import NO_ADAPTER, SampleScorer
from instructdiff_ray.results.compare import spearman
from instructdiff_ray.selection.ranking import Ranking, selected_ids
from instructdiff_ray.training.worker import with_adapter

RANK, ROWS = 16, 800
# An adapter wants larger steps than all parameters do, about ten times as large.
ADAPTER = replace(CALIBRATE, lora_rank=RANK, learning_rate=10 * CALIBRATE.learning_rate)
# So few tokens that weights and training state are most of what is held.
SAMPLES, LENGTH = 1, 64


def overlap(config: Config) -> dict[str, dict[str, float]]:
    """How alike each selection and the one after training all parameters are."""
    plain = select_last(config)
    others = {
        "adapter": select_last(replace(config, calibrate=ADAPTER)),
        "another seed": select_last(replace(config, seed=1)),
    }
    return {name: _compare(plain, other) for name, other in others.items()}


def _compare(plain: Ranking, other: Ranking) -> dict[str, float]:
    assert not plain.rejected.num_rows + other.rejected.num_rows, "rows would not be aligned"
    first, second = set(selected_ids(plain)), set(selected_ids(other))
    return {
        "samples": plain.table.num_rows,
        "selected": len(first),
        "overlap": len(first & second) / len(first),
        "jaccard": len(first & second) / len(first | second),
        "rank_correlation": spearman(_column(plain, "entropy"), _column(other, "entropy")),
        "mean_delta_nll": float(_column(plain, "nll").mean()),
        "mean_delta_nll_of_other": float(_column(other, "nll").mean()),
    }


def _column(ranking: Ranking, measure: str) -> np.ndarray:
    return np.asarray(ranking.table[f"delta_{measure}"].to_numpy(), dtype=float)


def memory(folder: str, task: str, adapter: bool) -> float:
    """The peak of this process's memory, above what it holds when idle, in MiB.

    task: train | score.
    """
    reset_peak()
    idle = peak_mib()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if task == "train":
        _train_step(with_adapter(model, CalibrateConfig(lora_rank=RANK)) if adapter else model)
    else:
        second = model if adapter else AutoModelForCausalLM.from_pretrained(folder)
        if adapter:
            model.load_adapter(f"{folder}/adapter")
        ids = [np.ones(LENGTH, dtype=np.int64)] * SAMPLES
        batch = Batch.of(ids, [np.arange(LENGTH) > 0] * SAMPLES, torch.device("cpu"))
        for scored, named in ((model, NO_ADAPTER), (second, "default")):
            SampleScorer(scored.eval(), None, named if adapter else None).score(batch)
    return peak_mib() - idle


def _train_step(model: Any) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    ids = torch.ones(SAMPLES, LENGTH, dtype=torch.long)
    for _ in range(2):  # the second step holds the optimizer's state beside the gradients
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def measure_memory() -> dict[str, float]:
    """The peak of each case, measured in a process of its own."""
    shape = Qwen2Config(
        vocab_size=151_936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    peaks: dict[str, float] = {}
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        model = Qwen2ForCausalLM(shape)
        model.save_pretrained(folder)
        with_adapter(model, CalibrateConfig(lora_rank=RANK)).save_pretrained(f"{folder}/adapter")
        del model
        for task in ("train", "score"):
            for kind in ("whole", "adapter"):
                command = [sys.executable, "-m", "benchmarks.lora", "--memory", folder, task, kind]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                peaks[f"{task}_{kind}_mib"] = round(float(done.stdout.split()[-1]))
                print(task, kind, peaks[f"{task}_{kind}_mib"], flush=True)
    return peaks


def measure_overlap(model: str, pools: Sequence[Path]) -> dict[str, dict[str, dict[str, float]]]:
    """The overlaps by pool; what `benchmarks.corrupted` has scored is not scored again."""
    start_ray()
    results = {}
    for path in pools:
        folder = FOLDER / path.stem
        config = settings(model, path, folder)
        write(folder / "drawn.jsonl", draw_samples(config, ROWS, seed=0))
        data = DataConfig(path=str(folder / "drawn.jsonl"))
        results[path.stem] = overlap(replace(config, data=data))
        print(path.stem, results[path.stem], flush=True)
    return results


def main() -> None:
    """Measure memory, or the overlap on the pools that the command line names."""
    if sys.argv[1:2] == ["--memory"]:
        folder, task, kind = sys.argv[2:]
        print(memory(folder, task, kind == "adapter"))
        return
    if len(sys.argv) == 1:
        save("lora-memory", {"samples": SAMPLES, "tokens": LENGTH, **measure_memory()})
        return
    model, *pools = sys.argv[1:]
    results = measure_overlap(model, [Path(pool) for pool in pools])
    save("lora-overlap", {"rank": RANK, "results": results})


if __name__ == "__main__":
    main()
