"""What LoRA calibration saves: `python -m benchmarks.lora`.

The peak memory of a training step and of a scorer, with and without an adapter, for a model of the
shape of Qwen2.5-0.5B with random weights.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

from benchmarks.common import peak_mib, reset_peak, save
from instructdiff_ray.config.training import CalibrateConfig
from instructdiff_ray.engine.batch import Batch
from instructdiff_ray.engine.metrics import NO_ADAPTER, SampleScorer
from instructdiff_ray.training.adapter import with_adapter

RANK = 16
# So few tokens that weights and training state are most of what is held.
SAMPLES, LENGTH = 1, 64


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


def main() -> None:
    """Measure all cases, or one in this process."""
    if sys.argv[1:2] == ["--memory"]:
        folder, task, kind = sys.argv[2:]
        print(memory(folder, task, kind == "adapter"))
        return
    save("lora-memory", {"samples": SAMPLES, "tokens": LENGTH, **measure_memory()})


if __name__ == "__main__":
    main()
