"""Which texts are alike: against a comparison of all pairs, and a plain search of graphs."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructdiff_ray.errors import UserError
from instructdiff_ray.pool import similarity
from instructdiff_ray.pool.similarity import (
    RECALL,
    SIGNATURE,
    band_count,
    band_rows,
    buckets,
    check_similarity,
    components,
    find_alike,
    sets_of,
    shingles,
)
from instructdiff_ray.pool.words import words

WORDS = [f"w{n}" for n in range(2000)]


def jaccard(first: set, second: set) -> float:
    return len(first & second) / max(1, len(first | second))


def edited(text: str, changes: int, draw: random.Random) -> str:
    """The text with so many words replaced, inserted or left out."""
    split = text.split()
    for _ in range(changes):
        place = draw.randrange(len(split))
        split[place : place + 1] = draw.choice(
            [[], [draw.choice(WORDS)], [split[place], draw.choice(WORDS)]]
        )
    return " ".join(split)


def mixed_texts(count: int, seed: int) -> list[str]:
    """Texts of 20 to 150 words; two of three are another one with up to twelve changes."""
    draw = random.Random(seed)
    texts = [" ".join(draw.choices(WORDS, k=draw.randint(20, 150))) for _ in range(count // 3)]
    while len(texts) < count:
        texts.append(edited(draw.choice(texts), draw.randint(0, 12), draw))
    return draw.sample(texts, count)


def test_shingles_are_three_words_in_a_row_and_short_texts_are_one() -> None:
    texts = ["a b c d", "A, b c!", "a b", "c", "", "a b c a b c"]
    sets = sets_of(shingles(texts))
    assert [len(each) for each in sets] == [2, 1, 1, 1, 0, 3]
    assert sets[1][0] in sets[0]
    expected = [
        {tuple(split[n : n + 3]) for n in range(max(1, len(split) - 2))} if split else set()
        for split in map(words, texts)
    ]
    for first, plain in zip(sets, expected, strict=True):
        for second, other in zip(sets, expected, strict=True):
            assert jaccard({*first.tolist()}, {*second.tolist()}) == jaccard(plain, other)


@given(st.floats(0.5, 1))
def test_what_is_just_similar_enough_shares_a_bucket_nearly_always(value: float) -> None:
    rows, bands = band_rows(value), band_count(value)
    assert rows * bands <= SIGNATURE
    assert 1 - (1 - value**rows) ** bands >= RECALL


@pytest.mark.parametrize("value", [0.5, 0.8, 0.95])
def test_buckets_bring_alike_texts_together_and_few_others(value: float) -> None:
    texts = mixed_texts(360, seed=1)
    sets = [{*each.tolist()} for each in sets_of(shingles(texts))]
    of = [{*each} for each in buckets(shingles(texts), value).tolist()]
    alike, together, others, by_chance = 0, 0, 0, 0
    for a in range(len(texts)):
        for b in range(a):
            likeness = jaccard(sets[a], sets[b])
            if likeness >= value:
                alike, together = alike + 1, together + bool(of[a] & of[b])
            elif likeness < value / 3:
                others, by_chance = others + 1, by_chance + bool(of[a] & of[b])
    assert alike > 30 and together >= 0.98 * alike
    assert by_chance < 0.02 * others


def plain_search(sets: Sequence[np.ndarray], value: float) -> list[bool]:
    """Which go: those that are like an earlier one that stays."""
    staying: list[set] = []
    going = []
    for each in sets:
        one = {*each.tolist()}
        going.append(any(jaccard(one, other) >= value - 1e-9 for other in staying))
        if not going[-1]:
            staying.append(one)
    return going


def check_alike(sets: Sequence[np.ndarray], value: float) -> np.ndarray:
    alike = find_alike(sets, value)
    for number in np.flatnonzero(alike >= 0):
        other = alike[number]
        assert other < number and alike[other] < 0
        pair = ({*sets[number].tolist()}, {*sets[other].tolist()})
        assert jaccard(*pair) >= value - 1e-9
    return alike


@given(
    st.lists(st.sets(st.integers(0, 12), min_size=1, max_size=9), max_size=40),
    st.sampled_from([0.5, 0.6, 0.75, 0.8, 0.9, 1.0]),
)
def test_what_goes_is_what_a_comparison_of_all_pairs_says(drawn: list[set], value: float) -> None:
    sets = [np.array(sorted(each), np.uint64) for each in drawn]
    assert (check_alike(sets, value) >= 0).tolist() == plain_search(sets, value)


@pytest.mark.parametrize("value", [0.5, 0.8, 0.95])
def test_some_hundred_texts_come_out_as_all_pairs_say(value: float) -> None:
    sets = sets_of(shingles(mixed_texts(400, seed=2)))
    going = (check_alike(sets, value) >= 0).tolist()
    assert going == plain_search(sets, value)
    assert 20 < sum(going) < 380


def test_of_a_chain_only_what_is_like_its_first_goes() -> None:
    # Each has nine of ten numbers in common with the next, and the first none with the last.
    sets = [np.arange(n, n + 10, dtype=np.uint64) for n in range(20)]
    assert np.flatnonzero(find_alike(sets, 0.8) < 0).tolist() == [*range(0, 20, 2)]


def test_samples_that_stay_are_only_compared_with() -> None:
    sets = [np.array(each, np.uint64) for each in ([1, 2, 3], [1, 2, 3], [1, 2, 3], [7], [7])]
    assert find_alike(sets, 0.9, earlier=2).tolist() == [-1, -1, 0, -1, -1]
    assert find_alike([], 0.9).tolist() == []


@pytest.mark.parametrize("alike", [True, False])
def test_thousands_of_one_template_are_not_all_compared(
    alike: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared = []
    plain = similarity._first_alike
    monkeypatch.setattr(
        similarity, "_first_alike", lambda *a: compared.append(len(a[1])) or plain(*a)
    )
    template, count, own = np.arange(60), 3000, 1 if alike else 20
    sets = [
        np.append(template, 100 + n * own + np.arange(own)).astype(np.uint64) for n in range(count)
    ]
    stay = int((find_alike(sets, 0.8) < 0).sum())
    assert stay == (1 if alike else count)
    assert sum(compared) <= count * 20  # of all pairs there are 1,500 a text


def test_of_texts_that_combine_the_same_few_words_none_is_missed() -> None:
    draw, names = random.Random(0), [f"n{n}" for n in range(10)]
    middle, end = " in the kitchen and then buys ", " more of them at the market in the old town"
    texts = [
        f"{draw.choice(names)} has {draw.randrange(20)}{middle}{draw.randrange(20)}{end}"
        for _ in range(1500)
    ]
    sets = sets_of(shingles(texts))
    assert (check_alike(sets, 0.7) >= 0).tolist() == plain_search(sets, 0.7)


def test_what_has_no_words_is_like_nothing() -> None:
    sets = sets_of(shingles(["", "…", "😀", "a b c", "a b c"]))
    assert (find_alike(sets, 0.8) >= 0).tolist() == [False, False, False, False, True]
    assert sets_of(shingles([])) == []


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=60))
def test_components_are_those_of_a_plain_search(edges: list[tuple[int, int]]) -> None:
    first, second = (np.array([e[n] for e in edges], np.int64) for n in (0, 1))
    least: dict[int, int] = {node: node for edge in edges for node in edge}
    for _ in least:
        for a, b in edges:
            least[a] = least[b] = min(least[a], least[b])
    nodes, roots = components(first, second)
    assert dict(zip(nodes.tolist(), roots.tolist(), strict=True)) == least


def test_long_chains_are_found_in_a_few_rounds() -> None:
    draw = np.random.default_rng(0)
    order = draw.permutation(200_000)
    _, roots = components(order[:-1], order[1:])
    assert not roots.any()  # a round for each link would take hours


def test_a_missing_library_is_told_where_it_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    check_similarity(0.8)
    monkeypatch.setattr(similarity, "PACKAGE", "no_such_package")
    check_similarity(None)
    with pytest.raises(UserError, match=r"pip install 'instructdiff-ray\[clean\]'$"):
        check_similarity(0.8)
    # So does a worker whose machine lacks it.
    with pytest.raises(UserError, match=r"on all machines: pip install"):
        buckets(shingles(["a b c d"]), 0.8)
