"""Texts as words and runs of words, whatever they hold."""

from __future__ import annotations

import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructdiff_ray.pool.words import hashed, words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The cat's hat, 3.5 kg!", ["the", "cat", "s", "hat", "3", "5", "kg"]),
        ("snake_case\nAND\tÜBER straße", ["snake", "case", "and", "über", "strasse"]),
        ("ﬁve ２ words", ["five", "2", "words"]),
        ("我吃了2个apple。", ["我", "吃", "了", "2", "个", "apple"]),
        ("यह किताब अच्छी है", ["यह", "किताब", "अच्छी", "है"]),
        ("இந்த புத்தகம்", ["இந்த", "புத்தகம்"]),
        ("مُحَمَّد رسول", ["مُحَمَّد", "رسول"]),
        ("ที่นี่ ブ・ス", ["ที่", "นี่", "ブ", "ス"]),
        ("❤️ 1️⃣", ["1"]),
        ("😀 — …", []),
    ],
)
def test_words_are_letters_and_digits_whatever_stands_between(
    text: str, expected: list[str]
) -> None:
    assert words(text) == [unicodedata.normalize("NFKC", word) for word in expected]


@given(
    st.lists(st.lists(st.sampled_from("abcde"), max_size=9), max_size=6),
    st.integers(1, 5),
)
def test_runs_are_equal_where_their_words_are_and_stay_within_their_text(
    texts: list[list[str]], size: int
) -> None:
    expected = [
        (tuple(text[start : start + size]), number)
        for number, text in enumerate(texts)
        for start in range(len(text) - size + 1)
    ]
    values, of = hashed(texts).windows(size)
    assert of.tolist() == [number for _, number in expected]
    by_hash = dict(zip(values.tolist(), (run for run, _ in expected), strict=True))
    assert [by_hash[value] for value in values.tolist()] == [run for run, _ in expected]
    assert len(by_hash) == len({run for run, _ in expected})


@given(st.lists(st.text(), max_size=5))
def test_any_text_has_words_and_hashes(texts: list[str]) -> None:
    split = [words(text) for text in texts]
    whole = hashed(split)
    assert whole.values.dtype == np.uint64
    assert whole.sizes.tolist() == [len(text) for text in split]
    assert all(word for text in split for word in text)
