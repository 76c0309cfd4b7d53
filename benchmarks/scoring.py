"""This scorer against the protocol of one sample at a time: `python -m benchmarks.scoring`.

Both score the same rows under the same two models, with random weights (the arithmetic is the
same), and are compared with the rate at which this machine multiplies matrices, measured beside
them. A processor runs small shapes in fp32 and bf16, with a small and a large vocabulary; a GPU
runs the shapes of Qwen2.5 0.5B and 7B in bf16. `python -m benchmarks.scoring cpu-fp32-64k` runs a
single case.

The protocol of one sample at a time is the one in use: for each sample a batch of one, full logits,
a log-softmax and a softmax over them, and the two models in two passes. Neither tokenises.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from benchmarks.common import save
from instructdiff_ray.engine.batch import Batch, token_batches
from instructdiff_ray.engine.metrics import SampleScorer
from instructdiff_ray.engine.packing import pack
from instructdiff_ray.engine.throughput import matmul_rate
from instructdiff_ray.scoring.actor import PAYING_TOKENS

# Token ids and which of them are scored: lists, or arrays.
Sample = tuple[Any, Any]


@dataclass(frozen=True)
class Case:
    """A model's shape, and how much is scored with it."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    dtype: torch.dtype
    device: str
    rows: int
    tokens_per_batch: int


def _cpu(vocabulary: int, dtype: torch.dtype) -> Case:
    return Case(768, 2048, 4, 12, 12, vocabulary, dtype, "cpu", 48, PAYING_TOKENS["cpu"])


CASES = {
    "cpu-fp32-8k": _cpu(8_192, torch.float32),
    "cpu-fp32-64k": _cpu(65_536, torch.float32),
    "cpu-bf16-8k": _cpu(8_192, torch.bfloat16),
    "cpu-bf16-64k": _cpu(65_536, torch.bfloat16),
    "cuda-bf16-0.5b": Case(
        896, 4864, 24, 14, 2, 151_936, torch.bfloat16, "cuda", 2048, PAYING_TOKENS["cuda"]
    ),
    "cuda-bf16-7b": Case(
        3584, 18_944, 28, 28, 4, 152_064, torch.bfloat16, "cuda", 512, PAYING_TOKENS["cuda"]
    ),
}


def build(case: Case, seed: int) -> Any:
    """A model of this shape with random weights."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=case.vocabulary,
        hidden_size=case.hidden,
        intermediate_size=case.intermediate,
        num_hidden_layers=case.layers,
        num_attention_heads=case.heads,
        num_key_value_heads=case.kv_heads,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
    )
    with torch.device(case.device):
        model: Any = Qwen2ForCausalLM(config)
    return model.to(case.dtype).eval()


def samples(case: Case) -> list[Sample]:
    """Instructions of 20 to 120 tokens and responses of 20 to 200, as in GSM8K or GPTeacher."""
    generator = torch.Generator().manual_seed(0)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high, (1,), generator=generator))

    rows = []
    for _ in range(case.rows):
        prompt, response = draw(20, 120), draw(20, 200)
        ids = torch.randint(0, case.vocabulary, (prompt + response,), generator=generator)
        rows.append((ids.tolist(), [False] * prompt + [True] * response))
    return rows


def operations(case: Case, rows: list[Sample]) -> float:
    """The operations of the matrix products that one model's scores need, without padding."""
    head = case.hidden // case.heads
    width = case.hidden * (2 * case.hidden + 2 * case.kv_heads * head)
    layer = 2 * (width + 3 * case.hidden * case.intermediate)
    total = 0.0
    for ids, response in rows:
        # Causal attention: half of length × length, scores and values.
        total += case.layers * (layer * len(ids) + 2 * case.hidden * len(ids) ** 2)
        total += 2 * case.hidden * case.vocabulary * sum(response)
    return total


@torch.inference_mode()
def one_at_a_time(models: list[Any], rows: list[Sample]) -> list[list[float]]:
    """The NLL of each sample under each model."""
    results = []
    for model in models:
        model.set_attn_implementation("sdpa")
        scores = []
        for ids, response in rows:
            tokens = torch.tensor([ids], device=model.device)
            logits = model(input_ids=tokens).logits[0, :-1].float()
            log_p = torch.log_softmax(logits, -1)
            p = torch.softmax(logits, -1)
            entropy = -(p * log_p).sum(-1)
            nll = -log_p.gather(-1, tokens[0, 1:, None]).squeeze(-1)
            mask = torch.tensor(response[1:], device=model.device)
            _ = float(entropy[mask].mean())
            scores.append(float(nll[mask].mean()))
        results.append(scores)
    return results


def batched(scorers: list[SampleScorer], rows: list[Sample], budget: int) -> list[list[float]]:
    """The same, computed as a scoring actor does."""
    results = [[0.0] * len(rows) for _ in scorers]
    scored = []
    for scorer in scorers:
        pack(scorer.model)
    for places in token_batches([len(ids) for ids, _ in rows], budget):
        ids, response = [rows[i][0] for i in places], [rows[i][1] for i in places]
        batch = Batch.of(ids, response, scorers[0].device)
        scored += [
            (result, places, scorer.score(batch))
            for result, scorer in zip(results, scorers, strict=True)
        ]
    for result, places, (nll, _) in scored:
        for row, value in zip(places, nll.tolist(), strict=True):
            result[row] = value
    return results


def seconds(call: Callable[[], Any], device: str) -> float:
    """The seconds of one call, with what it left running on the device."""
    if device == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def measure(case: Case) -> dict[str, Any]:
    """Ratios of runs side by side, from the faster of two runs of each protocol.

    The rate of matrix products is measured before and after each batched run.
    """
    models = [build(case, seed) for seed in (0, 1)]
    rows = samples(case)
    scorers = [SampleScorer(model) for model in models]
    few = rows if case.device == "cpu" else rows[: len(rows) // 8]
    expected, actual = one_at_a_time(models, few[:8]), batched(scorers, few[:8], 2048)
    largest_difference = max(
        abs(a - b) for x, y in zip(expected, actual, strict=True) for a, b in zip(x, y, strict=True)
    )
    singly_s, batched_s, rates = [], [], []
    for _ in range(2):
        singly_s.append(seconds(lambda: one_at_a_time(models, few), case.device))
        before = matmul_rate(models[0])
        batched_s.append(
            seconds(lambda: batched(scorers, rows, case.tokens_per_batch), case.device)
        )
        rates.append((before + matmul_rate(models[0])) / 2)
    tokens = 2 * sum(len(ids) for ids, _ in rows)
    # As if all rows had been scored.
    singly = min(singly_s) * tokens / (2 * sum(len(ids) for ids, _ in few))
    best = min(batched_s)
    rate = rates[batched_s.index(best)]
    return {
        "times_faster": round(singly / best, 2),
        "share_of_matrix_product_rate": round(2 * operations(case, rows) / best / rate, 3),
        "tokens_per_second": round(tokens / best),
        "tokens_per_second_one_at_a_time": round(tokens / singly),
        "matrix_product_gflops": round(rate / 1e9),
        "largest_difference": largest_difference,
    }


def main() -> None:
    """Measure the named cases, or all that this machine can."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    names = sys.argv[1:] or [name for name, case in CASES.items() if case.device == device]
    results: dict[str, Any] = {}
    for name in names:
        results[name] = measure(CASES[name])
        in_fp32 = results.get(name.replace("bf16", "fp32"), results[name])
        if in_fp32 is not results[name]:
            times = results[name]["tokens_per_second"] / in_fp32["tokens_per_second_one_at_a_time"]
            results[name]["times_faster_than_fp32_one_at_a_time"] = round(times, 2)
        print(name, results[name], flush=True)
        gc.collect()
    save("scoring", {"cases": results})


if __name__ == "__main__":
    main()
