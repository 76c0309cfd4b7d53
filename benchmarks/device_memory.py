"""Is the memory that training and scoring will hold foretold well, and what fits which device?

`python -m benchmarks.device_memory`

First trains and scores with a few shapes on this machine's processors, and compares the growth of
the process at its peak with what `training/memory.py` and `engine/memory.py` foretell. Then
foretells, for models that people fine-tune, in bf16 and samples of 2,048 tokens, what a device must
hold: in training with gradient checkpointing, and in scoring.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from dataclasses import replace
from typing import Any

from benchmarks.common import peak_mib, reset_peak, save
from instructdiff_ray.config.cluster import ScoreResources
from instructdiff_ray.config.training import CalibrateConfig
from instructdiff_ray.engine.batch import Batch
from instructdiff_ray.engine.memory import GIB, USABLE, ScoringMemory
from instructdiff_ray.engine.metrics import SampleScorer
from instructdiff_ray.results.console import aligned_table
from instructdiff_ray.scoring.placement import PASS_TOKENS, choose
from instructdiff_ray.training.batches import choose_collator
from instructdiff_ray.training.memory import MemoryModel, Pass
from instructdiff_ray.training.training_set import IGNORED

MEASURED: dict[str, tuple[dict[str, Any], Pass]] = {
    "5 M": (
        {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "vocab_size": 4096},
        Pass(16, 256, 16 * 128, accumulates=False),
    ),
    "47 M": (
        {
            "hidden_size": 512,
            "intermediate_size": 2048,
            "num_hidden_layers": 8,
            "vocab_size": 32_000,
        },
        Pass(8, 256, 8 * 200, accumulates=False),
    ),
    "59 M, long samples": (
        {
            "hidden_size": 640,
            "intermediate_size": 2560,
            "num_hidden_layers": 8,
            "vocab_size": 16_000,
        },
        Pass(2, 1024, 2 * 512, accumulates=False),
    ),
    "181 M": (
        {
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "vocab_size": 50_000,
            "tie_word_embeddings": False,
        },
        Pass(4, 256, 4 * 255, accumulates=False),
    ),
}
# Hidden width, intermediate width, layers, heads, heads of keys, words; the first tie embeddings.
MODELS = {
    "Qwen2.5-0.5B": (896, 4864, 24, 14, 2, 151_936),
    "Qwen2.5-1.5B": (1536, 8960, 28, 12, 2, 151_936),
    "Qwen2.5-7B": (3584, 18_944, 28, 28, 4, 152_064),
    "Llama-3-8B": (4096, 14_336, 32, 32, 8, 128_256),
    "Qwen2.5-32B": (5120, 27_648, 64, 40, 8, 152_064),
    "Llama-3-70B": (8192, 28_672, 80, 64, 8, 128_256),
}
TIED = ("Qwen2.5-0.5B", "Qwen2.5-1.5B")
DEVICES = (24, 48, 80)
# So that the C library gives back what is freed, and a process is as large as what is alive.
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
LENGTH = 2048
SCORED = 4096  # tokens of a pass
TASKS = ("train", "saving", "score")  # saving: with gradient checkpointing
SAVING = CalibrateConfig(gradient_checkpointing=True)
TRAININGS = {
    "one device": (SAVING, 1),
    "one device, adafactor": (replace(SAVING, optimizer="adafactor"), 1),
    "one device, LoRA": (replace(SAVING, lora_rank=16), 1),
    "8 devices, FSDP": (SAVING, 8),
    "8 devices, FSDP, LoRA": (replace(SAVING, lora_rank=16), 8),
}


def small_config(shape: dict[str, Any]) -> Any:
    """Heads of 64, two for each of keys."""
    from transformers import Qwen2Config

    heads = max(2, shape["hidden_size"] // 64)
    return Qwen2Config(
        **{"tie_word_embeddings": True, **shape},
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
    )


def measure(name: str, task: str) -> tuple[float, float]:
    """MiB by which this process grows at most, and what was foretold; task: one of TASKS."""
    import psutil
    import torch

    torch.set_num_threads(1)
    shape, one_pass = MEASURED[name]
    config = small_config(shape)
    hyper = CalibrateConfig(gradient_checkpointing=task == "saving")
    if task == "score":
        foretold = ScoringMemory.of(config, "fp32", SCORED, "cpu").on_each(models=2, devices=1)
    else:
        foretold = MemoryModel(config, "fp32").training(hyper, one_pass).peak

    def run(config: Any, one_pass: Pass, tokens: int) -> None:
        if task == "score":
            score(config, tokens)
        else:
            train(config, hyper, one_pass)

    # What is loaded at the first step is none of the model's.
    run(small_config({**shape, "hidden_size": 64, "num_hidden_layers": 1}), Pass(2, 8), 512)
    gc.collect()
    before = psutil.Process().memory_info().rss / 2**20
    reset_peak()
    run(config, one_pass, SCORED)
    return peak_mib() - before, foretold / 2**20


def train(config: Any, hyper: CalibrateConfig, one_pass: Pass) -> None:
    """Three steps."""
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_config(config).train()
    collator = choose_collator(model, None)
    if hyper.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    ids = torch.randint(0, 4000, (one_pass.length,)).tolist()
    response = one_pass.responses or one_pass.samples * one_pass.length
    prompt = max(1, one_pass.length - response // one_pass.samples)
    sample = {"input_ids": ids, "labels": [IGNORED] * prompt + ids[prompt:]}
    batch = collator([sample] * one_pass.samples)
    for _ in range(3):
        model(**batch, num_items_in_batch=response, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


def score(config: Any, tokens: int) -> None:
    """A pass of so many tokens under two models."""
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM

    scorers = [SampleScorer(AutoModelForCausalLM.from_config(config).eval()) for _ in range(2)]
    ids = [np.zeros(256, np.int64)] * (tokens // 256)
    batch = Batch.of(ids, [np.arange(256) > 0] * len(ids), torch.device("cpu"))
    for scorer in scorers:
        scorer.score(batch)


def compare() -> list[dict[str, Any]]:
    """Each shape in a process of its own, whose memory nothing has used before."""
    rows = []
    for name in MEASURED:
        for task in TASKS:
            code = f"from benchmarks.device_memory import *; print(*measure({name!r}, {task!r}))"
            output = subprocess.run(
                [sys.executable, "-c", code],
                env={**os.environ, **GIVE_BACK},
                check=True,
                capture_output=True,
                text=True,
            ).stdout
            measured, foretold = map(float, output.split())
            rows.append(
                {
                    "parameters": name,
                    "task": task,
                    "measured_mib": round(measured),
                    "foretold_mib": round(foretold),
                    "ratio": round(foretold / measured, 2),
                }
            )
    return rows


def large_config(name: str) -> Any:
    """Of one of MODELS."""
    from transformers import Qwen2Config

    hidden, intermediate, layers, heads, key_heads, words = MODELS[name]
    # Llama's differ by the biases of three projections, which are nothing here.
    return Qwen2Config(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        vocab_size=words,
        tie_word_embeddings=name in TIED,
    )


def placements(name: str) -> dict[str, Any]:
    """How scorers hold base and calibrated model, by device."""
    memory = ScoringMemory.of(large_config(name), "bf16", PASS_TOKENS, "cuda")
    held = {}
    for device in DEVICES:
        placement = choose(ScoreResources(gpus_per_actor=None), 2, memory, USABLE * device * GIB, 8)
        held[device] = [placement.models, placement.gpus]
    gib = {"weights_gib": memory.weights / GIB, "pass_gib": memory.forward / GIB}
    return {"model": name, **{n: round(v, 1) for n, v in gib.items()}, "models_and_gpus": held}


def foretell(name: str) -> list[dict[str, Any]]:
    """A row for each way to train the model: GiB of a device, and of every further sample."""
    model = MemoryModel(large_config(name), "bf16")
    rows = []
    for training, (hyper, shards) in TRAININGS.items():
        passes = [Pass(samples, LENGTH, shards=shards) for samples in (1, 8, 16)]
        one, eight, sixteen = (model.training(hyper, each).peak / GIB for each in passes)
        # Of few samples, what is not of them may be more.
        further = (sixteen - eight) / 8
        fitting = {
            device: int((USABLE * device - sixteen) // further + 16) * LENGTH
            if one <= USABLE * device
            else 0
            for device in DEVICES
        }
        rows.append(
            {
                "model": name,
                "training": training,
                "first_sample_gib": round(one, 1),
                "further_sample_gib": round(further, 2),
                "largest_tokens_per_device": fitting,
            }
        )
    return rows


def main() -> None:
    """Print both tables and keep them."""
    measured = compare()
    print(aligned_table([[*measured[0]], *([str(v) for v in r.values()] for r in measured)], 1))
    foretold = [row for name in MODELS for row in foretell(name)]
    head = ["model", "training", "GiB", "GiB a sample", *(f"{d} GB" for d in DEVICES)]
    rows = [
        [
            row["model"],
            row["training"],
            str(row["first_sample_gib"]),
            str(row["further_sample_gib"]),
            *(f"{n:,}" if n else "–" for n in row["largest_tokens_per_device"].values()),
        ]
        for row in foretold
    ]
    print(aligned_table([head, *rows], text_columns=2))
    scoring = [placements(name) for name in MODELS]
    head = ["model", "weights, GiB", "pass, GiB", *(f"{d} GB: models, GPUs" for d in DEVICES)]
    rows = [
        [
            row["model"],
            str(row["weights_gib"]),
            str(row["pass_gib"]),
            *(f"{models}, {gpus:g}" for models, gpus in row["models_and_gpus"].values()),
        ]
        for row in scoring
    ]
    print(aligned_table([head, *rows], text_columns=1))
    save("device-memory", {"measured": measured, "foretold": foretold, "scoring": scoring})


if __name__ == "__main__":
    main()
