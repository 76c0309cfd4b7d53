"""How near scoring comes to what the machine can do."""

from __future__ import annotations

import ctypes
import platform
import time
from dataclasses import dataclass, fields
from statistics import median
from typing import TYPE_CHECKING, Any

# From malloc.h.
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class Throughput:
    """What a scorer, or all of them, did.

    busy_s, waited_s: seconds in forward passes, and between two blocks; tokens, padded_tokens: of
    all passes, without and with padding; operations: of their matrix products, padding left out;
    possible: operations that matrix products alone would have reached in `busy_s`; scorers: how
    many have scored.
    """

    busy_s: float = 0.0
    waited_s: float = 0.0
    tokens: float = 0.0
    padded_tokens: float = 0.0
    operations: float = 0.0
    possible: float = 0.0
    scorers: float = 0.0

    def add(self, other: Throughput) -> None:
        """Count in what another did."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))

    def shares(self) -> dict[str, float]:
        """For people: shares of 1."""
        return {
            "padding": 1 - self.tokens / self.padded_tokens if self.padded_tokens else 0.0,
            "waited": self.waited_s / max(1e-9, self.busy_s + self.waited_s),
            "matrix_product_rate": self.operations / max(1e-9, self.possible),
        }


def keep_freed_memory() -> None:
    """For computing on processors: what one step frees stays in this process for the next.

    In Ray's workers the C library gives it back to the system after every step, and fetching it
    again page by page took a quarter of a scorer's time (benchmarks/LOG.md). Only glibc has these
    settings.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(TRIM_THRESHOLD, 1 << 30)
        libc.mallopt(MMAP_THRESHOLD, 32 << 20)  # the most that it takes


def matmul_rate(model: PreTrainedModel) -> float:
    """Operations a second in products like those of this model, where it is: the median of a few
    measurements, for the best of them is what no machine keeps up."""
    import torch  # here: the driver, which only adds up, has no need of it

    device, width = model.device, getattr(model.config.get_text_config(), "hidden_size", 1024)
    # On a GPU several at once, so that starting them costs nothing.
    rows, products = (16_384, 8) if device.type == "cuda" else (1024, 1)
    a = torch.randn(rows, width, device=device).to(model.dtype)
    b = torch.randn(width, 4 * width, device=device).to(model.dtype)
    seconds = []
    for _ in range(8):
        began = time.perf_counter()
        for _ in range(products):
            _ = a @ b
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return products * 2 * a.numel() * b.shape[1] / median(seconds)


def operations_per_token(model: PreTrainedModel) -> tuple[int, int]:
    """Of the matrix products of a dense model, for each token, and more for each that is scored.

    Two for a weight; attention between tokens is left out, so the share that follows is a little
    low.
    """
    output: Any = model.get_output_embeddings()
    given: Any = model.get_input_embeddings()
    if output is None:
        return 2 * model.num_parameters(), 0
    apart = 0 if output.weight is given.weight else output.weight.numel()
    body = model.num_parameters() - given.weight.numel() - apart
    return 2 * body, 2 * output.weight.numel()
