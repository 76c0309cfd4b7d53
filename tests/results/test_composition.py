from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from instructdiff_ray.config.selection import SelectConfig
from instructdiff_ray.results.composition import (
    NEAR_IDENTICAL,
    OPENING,
    SOURCE,
    TEMPLATE,
    Concentration,
    comparable_draws,
    compare_with_pool,
    near_duplicates,
    opening,
)
from instructdiff_ray.selection.batches import RankingInputs
from instructdiff_ray.selection.ranking import rank
from instructdiff_ray.selection.strategies import STRATEGIES
from tests.selection.test_select import make_pool, written_scores

WORDS = [f"word{n}" for n in range(500)]


def text(draw: random.Random, words: int = 60) -> str:
    return " ".join(draw.choices(WORDS, k=words))


def sample(draw: random.Random, prompt: str = "", response: str = "", file: str = "a") -> dict:
    parts = [
        {"kind": "instruction", "text": prompt or text(draw)},
        {"kind": "response", "text": response or text(draw)},
    ]
    return {"file": file, "parts": parts}


def by_kind(found: list[Concentration]) -> dict[str, Concentration]:
    return {item.kind: item for item in found}


def jaccard(a: str, b: str) -> float:
    first, second = ({t[i : i + 8] for i in range(len(t) - 7)} for t in (a, b))
    return len(first & second) / len(first | second)


def changed(draw: random.Random, original: str, words: int) -> str:
    """The text with this many of its words replaced."""
    parts = original.split()
    for place in draw.sample(range(len(parts)), words):
        parts[place] = draw.choice(WORDS)
    return " ".join(parts)


def test_near_duplicates_are_those_of_high_jaccard_similarity() -> None:
    draw = random.Random(0)
    for _ in range(40):
        original = text(draw, 150)
        other = changed(draw, original, draw.choice([1, 2, 30, 100]))
        similarity = jaccard(original, other)
        if abs(similarity - 0.8) > 0.1:  # 128 hashes: a standard error of 0.035
            assert near_duplicates([original, other]).tolist() == [similarity > 0.8] * 2


@pytest.mark.parametrize("texts", [["a", "b", "a"], ["", "x", ""], ["日本語", "中文", "日本語"]])
def test_short_texts_are_compared_whole(texts: list[str]) -> None:
    assert near_duplicates(texts).tolist() == [True, False, True]


def test_the_pool_is_drawn_with_as_many_of_each_domain_as_the_selection(tmp_path: Path) -> None:
    domains = ["law"] * 300 + ["math"] * 900
    pool, draw = make_pool(tmp_path, domains, [5] * 1200), np.random.default_rng(0)
    base = written_scores(pool, "base", draw.random((2, 1200)), set())
    ratios = {"law": 0.5, "math": 0.05}
    inputs = RankingInputs(STRATEGIES["ppl_min"], lambda name: SelectConfig(ratio=ratios[name]))
    ranking = rank(pool, {"base": base}, inputs)
    selected, drawn = comparable_draws(ranking)
    names = np.array(ranking.table["domain"].to_pylist())
    assert Counter(names[drawn]) == Counter(names[selected]) == {"law": 150, "math": 45}
    assert ranking.has_fate("selected")[selected].all()
    assert {*drawn} != {*selected}


def test_a_mix_has_no_concentration() -> None:
    draw = random.Random(0)
    rows = [sample(draw, file=draw.choice("ab")) for _ in range(800)]
    found = by_kind(compare_with_pool(rows[:400], rows[400:]))
    assert [*found] == [SOURCE, TEMPLATE, OPENING, NEAR_IDENTICAL]
    assert all(abs(item.excess) < 0.1 for item in found.values())
    assert found[SOURCE].pool == pytest.approx(0.5, abs=0.1)


def test_what_fills_the_selection_is_named_with_both_shares() -> None:
    draw = random.Random(0)
    pool = [sample(draw) for _ in range(100)]
    same: list[dict[str, Any]] = [
        sample(draw, f"Write a poem about the {draw.choice(WORDS)}", "Sorry, I can't do that.", "b")
        for _ in range(30)
    ]
    selected = same + [sample(draw) for _ in range(70)]
    found = by_kind(compare_with_pool(selected, pool))
    assert found[SOURCE] == Concentration(SOURCE, "b", 0.3, 0.0)
    assert found[TEMPLATE].value == "write a poem about the"
    assert found[OPENING].value == opening("Sorry, I can't do that.")
    for kind in (TEMPLATE, OPENING, NEAR_IDENTICAL):
        assert found[kind].selected == pytest.approx(0.3)
        assert found[kind].pool <= 0.01


def test_an_opening_is_short_and_can_be_shown_on_a_terminal() -> None:
    assert opening("\x1b[31mRed\nAlert  for you and ME too") == "\ufffd[31mred alert for you and"
    assert len(opening("x" * 10_000)) == 80
