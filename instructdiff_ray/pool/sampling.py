"""The warm-up subset: a random α share of the pool that depends on seed and sample_id alone."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable
from fractions import Fraction

import numpy as np

from instructdiff_ray.errors import UserError

# Ids, as fixed-width bytes, and the draw of each, uint64.
Draws = tuple[np.ndarray, np.ndarray]


def sample_warmup(size: int, below: Callable[[int], Draws], ratio: float) -> list[str]:
    """⌊αN⌋ of N ids, sorted: those of lowest draw, so the same rows come whatever the order of the
    files, the partitioning or the number of workers.

    below: a limit → the ids whose draws are below it, in any order. Raises UserError where α leaves
    none.
    """
    count = floor_share(ratio, size)
    if count == 0:
        scale = 10 ** (len(str(size)) + 1)  # two digits, rounded up, so the advice holds
        enough = math.ceil(scale / max(1, size)) / scale
        raise UserError(
            f"calibrate.ratio={ratio} of {size} samples leaves no warm-up sample; raise it to"
            f" {enough:g} or more"
        )
    # Draws are uniform below 2⁶⁴: eight standard deviations more than wanted are enough, but for
    # bad luck that nobody lives to see, and then all are asked for.
    probable = min(1.0, (count + 8 * math.sqrt(count) + 8) / size)
    for limit in (int(probable * 2**64), 2**64):
        ids, draws = below(limit)
        if len(ids) >= count:
            break
    if len(ids) > count:
        last = np.partition(draws, count - 1)[count - 1]
        equal = np.sort(ids[draws == last])
        lower = ids[draws < last]
        ids = np.concatenate([lower, equal[: count - len(lower)]])
    return [sample_id.decode() for sample_id in np.sort(ids).tolist()]


def draws_below(sample_ids: Iterable[str], seed: int, limit: int) -> Draws:
    """Those of the ids whose draws, their hashes under the seed, are below a limit."""
    drawn = [(i, number) for i in sample_ids if (number := draw(i, str(seed))) < limit]
    ids, numbers = zip(*drawn, strict=True) if drawn else ((), ())
    return np.array(ids, "S"), np.array(numbers, np.uint64)


def lowest_draws(sample_ids: Iterable[str], count: int, key: str) -> list[str]:
    """The `count` ids of lowest keyed hash; of two with one hash the lesser first."""
    return sorted(sample_ids, key=lambda i: (draw(i, key), i))[:count]


def at_most(sample_ids: list[str], count: int | None, seed: int) -> list[str]:
    """The ids, or so many of them at random, sorted: the same ones of the same ids."""
    if count is None or len(sample_ids) <= count:
        return sample_ids
    # Not by the draw of the warm-up subset: of a domain with a larger share of its own, that took
    # samples which come later.
    return sorted(lowest_draws(sample_ids, count, f"at most {seed}"))


def draw(sample_id: str, key: str) -> int:
    """A number below 2⁶⁴, uniform over ids and keys: the id's hash under the key."""
    digest = hashlib.blake2b(sample_id.encode(), key=key.encode()[:64], digest_size=8).digest()
    return int.from_bytes(digest, "big")


def repeat_seed(seed: int, repeat: int) -> int:
    """The seed of one of several calibrations: of its warm-up subset, and of training. The first
    has the run's own; the others' are hashes below 2³¹, so that the repeats of runs with other
    seeds are other repeats."""
    return seed if repeat == 0 else draw(str(repeat), f"repeat {seed}") >> 33


def floor_share(ratio: float, count: int) -> int:
    """⌊ratio · count⌋ of the ratio as it is written: 0.29 · 100 is 29, though not in floats."""
    return math.floor(Fraction(str(ratio)) * count)
