"""ZIP against the definition: every ratio computed over the whole text, nothing kept."""

from __future__ import annotations

import zlib
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instructdiff_ray.selection import zip_greedy
from instructdiff_ray.selection.zip_greedy import Compressed, greedy_order

WORDS = ["red", "green", "blue", "sum", "of", "the", "and", "7", "42", "x + y"]
TEXTS = st.lists(
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=30).map(lambda w: " ".join(w).encode()),
    min_size=1,
    max_size=25,
)


def plain_ratio(texts: list[bytes]) -> float:
    whole = b"".join(texts)
    return len(whole) / len(zlib.compress(whole, 9))


def plain_order(texts: list[bytes], count: int, unique: bool) -> list[int]:
    """Algorithm as it is published, with K1 = 8, K2 = 4, K3 = 2."""
    state = [plain_ratio([text]) for text in texts]
    picks: list[int] = []
    while len(picks) < count and not (unique and len(set(picks)) == len(texts)):
        free = [i for i in range(len(texts)) if not (unique and i in picks)]
        nearest = sorted(free, key=lambda i: (state[i], i))[:8]
        for i in nearest:
            state[i] = plain_ratio([*(texts[p] for p in picks), texts[i]])
        best = sorted(nearest, key=lambda i: state[i])[:4]
        for i in best:
            state[i] = float("inf")
        local: list[int] = []
        for _ in range(min(2, len(best))):
            rest = [i for i in best if i not in local]
            local.append(min(rest, key=lambda i: plain_ratio([texts[p] for p in [*local, i]])))
        picks += local
    return picks[:count]


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("K1", 8), ("K2", 4), ("K3", 2)):
        monkeypatch.setattr(zip_greedy, name, value)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(TEXTS, st.booleans())
def test_the_order_is_that_of_the_definition(texts: list[bytes], unique: bool) -> None:
    found = list(islice(greedy_order(texts, unique), len(texts)))
    assert found == plain_order(texts, len(texts), unique)
    if unique:
        assert sorted(found) == list(range(len(texts)))


def test_as_published_a_sample_can_be_taken_twice() -> None:
    texts = [f"{n} {n * n} of {n}".encode() for n in range(9)]
    picks = list(islice(greedy_order(texts, unique=False), 9))
    assert len(set(picks)) < len(picks)


def test_compressing_as_texts_come_gives_the_bytes_of_compressing_them_at_once() -> None:
    random = np.random.default_rng(0)
    compressed, texts = Compressed(), []
    for size in (1, 10, 1000, 70_000, 3, 200_000, 5000):
        text = b" ".join(WORDS[n].encode() for n in random.integers(0, len(WORDS), size))
        assert compressed.ratio_with(text) == plain_ratio([*texts, text])
        compressed.add(text)
        texts.append(text)
