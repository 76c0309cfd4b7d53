"""Which samples go through a model together, and how they lie in memory: one behind the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


def token_batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Positions of `lengths` in batches whose padded size, rows × longest, is at most `budget`.

    Longest first, so that memory peaks in the first batch, and little is padding where a model
    needs padding. Each position comes exactly once; one sample longer than the budget is a batch of
    its own, and one of no tokens in none.
    """
    order = sorted(np.flatnonzero(lengths).tolist(), key=lambda position: -lengths[position])
    batch: list[int] = []
    for position in order:
        if batch and (len(batch) + 1) * lengths[batch[0]] > budget:
            yield batch
            batch = []
        batch.append(position)
    if batch:
        yield batch


@dataclass(frozen=True)
class Batch:
    """Encoded samples one behind the other, on a device; all models score the same one.

    tokens, positions: [tokens], ids, and places within their sample; starts: [samples + 1] int32,
    where each sample begins, and the end; lengths: of the samples, for Python.
    contexts: [scored], where in `tokens` the context of each scored token ends; targets: [scored],
    its id; rows: [scored], its sample; counts: [samples], how many of each are scored.
    """

    tokens: Tensor
    positions: Tensor
    starts: Tensor
    lengths: list[int]
    contexts: Tensor
    targets: Tensor
    rows: Tensor
    counts: Tensor

    @classmethod
    def of(
        cls,
        input_ids: Sequence[Sequence[int] | np.ndarray],
        response: Sequence[Sequence[bool] | np.ndarray],
        device: torch.device,
    ) -> Batch:
        """input_ids: token ids of each sample; response: whether each is scored (never the first).

        All of it is computed before it is sent, so that nothing here waits for the device.
        """
        lengths = np.array([len(ids) for ids in input_ids])
        starts = np.append(0, np.cumsum(lengths))
        tokens = np.concatenate(input_ids).astype(np.int64)
        sample = np.repeat(np.arange(len(lengths)), lengths)
        scored = np.flatnonzero(np.concatenate(response))
        arrays = {
            "tokens": tokens,
            "positions": np.arange(len(tokens)) - starts[sample],
            "starts": starts.astype(np.int32),
            "contexts": scored - 1,
            "targets": tokens[scored],
            "rows": sample[scored],
            "counts": np.bincount(sample[scored], minlength=len(lengths)),
        }
        sent = {name: _send(array, device) for name, array in arrays.items()}
        return cls(lengths=lengths.tolist(), **sent)

    def padded(self) -> tuple[Tensor, Tensor]:
        """Token ids [samples, longest], padded on the right, and where in that, flattened, each of
        `tokens` lies."""
        longest, device = max(self.lengths), self.tokens.device
        sample = torch.repeat_interleave(
            torch.arange(len(self.lengths), device=device),
            self.starts.diff(),
            output_size=len(self.tokens),
        )
        where = sample * longest + self.positions
        tokens = self.tokens.new_zeros(len(self.lengths) * longest)
        tokens[where] = self.tokens
        return tokens.view(len(self.lengths), longest), where


def _send(array: np.ndarray, device: torch.device) -> Tensor:
    tensor = torch.from_numpy(array)
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)
