"""The warm-up subset: a random α share of the pool that depends on seed and sample_id alone."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from fractions import Fraction

from instructdiff_ray.errors import UserError


def sample_warmup(sample_ids: Iterable[str], ratio: float, seed: int) -> list[str]:
    """⌊αN⌋ of the ids, sorted. Each id's place in the draw is its keyed hash, so the same rows come
    whatever the order of the files, the partitioning or the number of workers.

    Raises UserError where α leaves none.
    """
    ids = list(sample_ids)
    count = floor_share(ratio, len(ids))
    if count == 0:
        scale = 10 ** (len(str(len(ids))) + 1)  # two digits, rounded up, so that the advice holds
        enough = math.ceil(scale / max(1, len(ids))) / scale
        raise UserError(
            f"calibrate.ratio={ratio} of {len(ids)} samples leaves no warm-up sample; raise it to"
            f" {enough:g} or more"
        )
    key = str(seed).encode()[:64]
    drawn = sorted(ids, key=lambda i: (hashlib.blake2b(i.encode(), key=key).digest(), i))
    return sorted(drawn[:count])


def floor_share(ratio: float, count: int) -> int:
    """⌊ratio · count⌋ of the ratio as it is written: 0.29 · 100 is 29, though not in floats."""
    return math.floor(Fraction(str(ratio)) * count)
