from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instructdiff_ray.config import SelectConfig
from instructdiff_ray.ranking import by_domain, fate_counts, rank, selected_ids
from instructdiff_ray.select import select

ROW = st.tuples(
    st.sampled_from(["math", "code"]),
    # Few values, so that ties are common.
    st.sampled_from([-1.0, -0.5, 0.0, 0.5, 1.0]),
    st.sampled_from([-1.0, 0.0, 0.25, 1.0]),
)


def plain_fates(rows: list[tuple[str, str, float, float]], beta: float, gamma: float) -> dict:
    """Algorithm 1 as it is written: rows of (id, domain, ΔNLL, ΔH)."""
    fates = {}
    for domain in {row[1] for row in rows}:
        pool = [row for row in rows if row[1] == domain]
        cut = math.floor(Fraction(str(gamma)) * len(pool))
        ordered = sorted(pool, key=lambda row: (row[2], row[0]))
        low, rest = ordered[:cut], ordered[cut:]
        band, high = rest[: len(rest) - cut], rest[len(rest) - cut :]
        top = max(1, math.floor(Fraction(str(beta)) * len(pool)))
        chosen = sorted(band, key=lambda row: (row[3], row[0]))[:top]
        fates.update({row[0]: "not_top" for row in band})
        fates.update({row[0]: "below_band" for row in low})
        fates.update({row[0]: "above_band" for row in high})
        fates.update({row[0]: "selected" for row in chosen})
    return fates


def fates_of(rows: list[tuple[str, str, float, float]], config: SelectConfig) -> dict[str, str]:
    ids, domains, nll, entropy = (np.array(column) for column in zip(*rows, strict=True))
    fates = select(ids.astype("S"), domains.astype(object), nll, entropy, config)
    return dict(zip(ids.tolist(), fates.tolist(), strict=True))


@settings(deadline=None, max_examples=200, derandomize=True)
@given(
    st.lists(ROW, min_size=1, max_size=60),
    st.sampled_from([(0.1, 0.1), (0.05, 0.0), (0.5, 0.25), (1.0, 0.0), (0.29, 0.1), (0.1, 0.45)]),
    st.randoms(use_true_random=False),
)
def test_the_selection_is_algorithm_1s_whatever_the_order_of_rows(rows, ratios, rng) -> None:  # type: ignore[no-untyped-def]
    named = [(f"{number:04d}", *row) for number, row in enumerate(rows)]
    config = SelectConfig(*ratios)
    expected = plain_fates(named, *ratios)
    assert fates_of(named, config) == expected
    rng.shuffle(named)
    assert fates_of(named, config) == expected


def test_one_sample_is_selected() -> None:
    assert fates_of([("a", "math", 0.0, 0.0)], SelectConfig()) == {"a": "selected"}


def test_equal_scores_are_settled_by_the_id() -> None:
    rows = [(f"{i:02d}", "math", 0.0, 0.0) for i in range(20)]
    fates = fates_of(rows, SelectConfig(ratio=0.1, reject_ratio=0.1))
    assert [i for i, fate in fates.items() if fate == "below_band"] == ["00", "01"]
    assert [i for i, fate in fates.items() if fate == "above_band"] == ["18", "19"]
    assert [i for i, fate in fates.items() if fate == "selected"] == ["02", "03"]


def test_a_score_that_is_not_finite_is_an_error_that_names_the_sample() -> None:
    for bad in (math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match="culprit"):
            fates_of([("fine", "m", 0.0, 0.0), ("culprit", "m", 0.0, bad)], SelectConfig())
        with pytest.raises(ValueError, match="culprit"):
            fates_of([("fine", "m", 0.0, 0.0), ("culprit", "m", bad, 0.0)], SelectConfig())


def test_the_ranking_holds_deltas_of_the_right_sign_and_its_counts_add_up() -> None:
    rng = np.random.default_rng(0)
    ids = pa.array(sorted(f"{value:08x}" for value in range(100)))
    domains = pa.array(["a", "b"] * 50).dictionary_encode()
    index = pa.table({"sample_id": ids, "domain": domains, "response_tokens": [3] * 100})
    columns = rng.normal(size=(4, 100))
    scores = {
        "base": pa.table({"sample_id": ids, "nll": columns[0], "entropy": columns[1]}),
        "calibrated": pa.table({"sample_id": ids, "nll": columns[2], "entropy": columns[3]}),
    }
    ranking = rank(index, scores, SelectConfig())
    assert np.array_equal(ranking["delta_nll"].to_numpy(), columns[2] - columns[0])
    assert np.array_equal(ranking["delta_entropy"].to_numpy(), columns[1] - columns[3])
    counts = fate_counts(ranking)
    assert counts == {"below_band": 10, "above_band": 10, "in_band": 80, "selected": 10}
    assert len(selected_ids(ranking)) == 10
    domains_table = by_domain(ranking)
    assert {d: v["selected"] for d, v in domains_table.items()} == {"a": 5, "b": 5}
    half = ranking["delta_nll"].to_numpy()[::2]
    assert domains_table["a"]["delta_nll"]["p50"] == pytest.approx(np.median(half))
