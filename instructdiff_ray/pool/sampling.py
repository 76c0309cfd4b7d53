"""The warm-up subset: a random α share of the pool that depends on seed and sample_id alone."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable
from fractions import Fraction
from itertools import compress

import numpy as np

from instructdiff_ray.errors import UserError


def sample_warmup(sample_ids: Callable[[], Iterable[str]], ratio: float, seed: int) -> list[str]:
    """⌊αN⌋ of the ids, sorted. Each id's place in the draw is its keyed hash, so the same
    rows come whatever the order of the files, the partitioning or the number of workers.

    sample_ids: gives all ids, twice, so that they need not all be held. Raises UserError where α
    leaves none.
    """
    draws = np.fromiter((draw(i, str(seed)) for i in sample_ids()), np.uint64)
    count = floor_share(ratio, len(draws))
    if count == 0:
        scale = 10 ** (len(str(len(draws))) + 1)  # two digits, rounded up, so the advice holds
        enough = math.ceil(scale / max(1, len(draws))) / scale
        raise UserError(
            f"calibrate.ratio={ratio} of {len(draws)} samples leaves no warm-up sample; raise it to"
            f" {enough:g} or more"
        )
    last = np.partition(draws, count - 1)[count - 1]
    return sorted(lowest_draws(compress(sample_ids(), draws <= last), count, str(seed)))


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
