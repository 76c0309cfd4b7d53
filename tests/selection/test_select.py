from __future__ import annotations

import math
import random
from collections.abc import Collection, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instructdiff_ray.config.selection import SelectConfig
from instructdiff_ray.models.encoding import LIKELIHOOD
from instructdiff_ray.pool.partition import partition_file, split_by_partition
from instructdiff_ray.pool.pool import INDEX, Pool
from instructdiff_ray.scoring.shards import shard_schema
from instructdiff_ray.scoring.spec import SCORES, ScoreTable
from instructdiff_ray.selection.batches import RankingInputs
from instructdiff_ray.selection.budgets import Budget, domain_budgets, domain_sizes
from instructdiff_ray.selection.counts import by_domain, fate_counts, scored_counts
from instructdiff_ray.selection.ranking import RANKING, rank, selected_ids
from instructdiff_ray.selection.select import FATES, Candidates, select
from instructdiff_ray.selection.strategies import STRATEGIES
from instructdiff_ray.storage.artifacts import FinishedArtifact
from instructdiff_ray.storage.filesystem import Folder

SHARD = shard_schema(LIKELIHOOD)
INSTRUCTDIFF = RankingInputs(STRATEGIES["instructdiff"], lambda _: SelectConfig())
ROW = st.tuples(
    st.sampled_from(["math", "code"]),
    # Few values, so that ties are common.
    st.sampled_from([-1.0, -0.5, 0.0, 0.5, 1.0]),
    st.sampled_from([-1.0, 0.0, 0.25, 1.0]),
)


def plain_fates(
    rows: list[tuple[str, str, float, float]],
    beta: float,
    gamma: float,
    guarded: Collection[str] = (),
) -> dict:
    """Algorithm 1 as it is written: rows of (id, domain, ΔNLL, ΔH). guarded: ids that a guard keeps
    out of the selection; without it, Algorithm 1 to the letter."""
    fates = {}
    for domain in {row[1] for row in rows}:
        pool = [row for row in rows if row[1] == domain]
        cut = math.floor(Fraction(str(gamma)) * len(pool))
        ordered = sorted(pool, key=lambda row: (row[2], row[0]))
        low, rest = ordered[:cut], ordered[cut:]
        band, high = rest[: len(rest) - cut], rest[len(rest) - cut :]
        top = max(1, math.floor(Fraction(str(beta)) * len(pool)))
        candidates = [row for row in band if row[0] not in guarded]
        chosen = sorted(candidates, key=lambda row: (row[3], row[0]))[:top]
        fates.update({row[0]: "excluded" for row in band})
        fates.update({row[0]: "not_top" for row in candidates})
        fates.update({row[0]: "below_band" for row in low})
        fates.update({row[0]: "above_band" for row in high})
        fates.update({row[0]: "selected" for row in chosen})
    return fates


def undecided(count: int) -> np.ndarray:
    return np.full(count, -1, np.int8)


def budgets_of(candidates: Candidates, configs: Sequence[SelectConfig]) -> list[Budget]:
    """By domain number, as the configurations say; a domain is called by its number."""
    names = [str(number) for number in range(len(configs))]
    sizes = domain_sizes(candidates.domains, candidates.tokens, len(configs))
    pairs = [dict(zip(names, values, strict=True)) for values in (configs, sizes)]
    return [*domain_budgets(*pairs).values()]


def select_by_ratios(
    candidates: Candidates, end: str | None, configs: Sequence[SelectConfig]
) -> np.ndarray:
    return select(candidates, end, configs, budgets_of(candidates, configs))


def fates_of(rows: list[tuple[str, str, float, float]], config: SelectConfig) -> dict[str, str]:
    ids, domains, nll, entropy = (np.array(column) for column in zip(*sorted(rows), strict=True))
    numbers = np.unique(domains, return_inverse=True)[1]
    tokens = np.ones(len(ids), np.int32)
    candidates = Candidates(numbers, tokens, entropy, nll, undecided(len(ids)))
    fates = select_by_ratios(candidates, None, [config] * (numbers.max() + 1))
    return {name: FATES[fate] for name, fate in zip(ids.tolist(), fates, strict=True)}


@settings(deadline=None, max_examples=200, derandomize=True)
@given(
    st.lists(ROW, min_size=1, max_size=60),
    st.sampled_from([(0.1, 0.1), (0.05, 0.0), (0.5, 0.25), (1.0, 0.0), (0.29, 0.1), (0.1, 0.45)]),
)
def test_the_selection_is_algorithm_1s(rows, ratios) -> None:  # type: ignore[no-untyped-def]
    named = [(f"{number:04d}", *row) for number, row in enumerate(rows)]
    assert fates_of(named, SelectConfig(*ratios)) == plain_fates(named, *ratios)


SAMPLE = st.tuples(
    st.sampled_from([0.0, 0.5, 1.0, 2.0]),  # few values, so that ties are common
    st.integers(1, 9),
    st.booleans(),
)


def plain_selection(samples: list[tuple[float, int, bool]], end: str, config: SelectConfig) -> set:
    """Places of those selected: ranked by (value, place), without a filter."""
    free = [place for place, (_, _, excluded) in enumerate(samples) if not excluded]
    sign = -1 if end == "highest" else 1
    order = sorted(free, key=lambda place: (sign * samples[place][0], place))
    if end == "middle":  # from the middle outwards, the lower neighbour first
        middle = len(order) // 2
        order = sorted(order, key=lambda p: abs(order.index(p) - middle + 0.25))
    share = Fraction(str(config.ratio))
    if config.budget == "samples":
        count = math.floor(share * len(samples))
    else:
        wanted = math.floor(share * sum(tokens for _, tokens, _ in samples))
        held = np.cumsum([samples[place][1] for place in order])
        count = 1 + int((held < wanted).sum())
    count = min(count, config.max_samples or count)
    return set(order[: max(count, config.min_samples or 1)])


@settings(deadline=None, max_examples=200, derandomize=True)
@given(
    st.lists(SAMPLE, min_size=1, max_size=40),
    st.sampled_from(["lowest", "middle", "highest"]),
    st.sampled_from(["samples", "tokens"]),
    st.sampled_from([0.05, 0.29, 0.5, 1.0]),
    st.sampled_from([(None, None), (3, None), (None, 2), (2, 5)]),
)
def test_ends_budgets_floors_and_caps(samples, end, budget, ratio, bounds) -> None:  # type: ignore[no-untyped-def]
    config = SelectConfig(ratio, 0.0, budget, *bounds, entropy=end)
    values, tokens, excluded = (np.array(column) for column in zip(*samples, strict=True))
    decided = np.where(excluded, FATES.index("excluded"), -1)
    candidates = Candidates(np.zeros(len(samples), int), tokens, values, None, decided)
    expected = plain_selection(samples, end, config)
    for given_end in (end, None):  # the strategy's, and the configuration's
        fates = [FATES[fate] for fate in select_by_ratios(candidates, given_end, [config])]
        assert {place for place, fate in enumerate(fates) if fate == "selected"} == expected
        assert [fate == "excluded" for fate in fates] == excluded.tolist()


@pytest.mark.parametrize("count", range(1, 8))
def test_the_middle_is_the_ranks_around_half(count: int) -> None:
    values = np.arange(9.0)
    candidates = Candidates(np.zeros(9, int), np.ones(9, int), values, None, undecided(9))
    config = SelectConfig(1.0, 0.0, max_samples=count)
    chosen = np.flatnonzero(
        select_by_ratios(candidates, "middle", [config]) == FATES.index("selected")
    )
    assert chosen.tolist() == list(range(4 - count // 2, 4 - count // 2 + count))


def test_a_domain_has_its_own_ratios() -> None:
    domains, values = np.array([0] * 20 + [1] * 20), np.arange(40.0)
    candidates = Candidates(domains, np.ones(40, int), values, values, undecided(40))
    configs = [SelectConfig(0.1, 0.1), SelectConfig(0.5, 0.2)]
    fates = select_by_ratios(candidates, "lowest", configs)
    names = [FATES[fate] for fate in fates]
    assert [names[:20].count(f) for f in ("selected", "below_band", "above_band")] == [2, 2, 2]
    assert [names[20:].count(f) for f in ("selected", "below_band", "above_band")] == [10, 4, 4]


def test_one_sample_is_selected() -> None:
    assert fates_of([("a", "math", 0.0, 0.0)], SelectConfig()) == {"a": "selected"}


def test_equal_scores_are_settled_by_the_id() -> None:
    rows = [(f"{i:02d}", "math", 0.0, 0.0) for i in range(20)]
    fates = fates_of(rows, SelectConfig(ratio=0.1, reject_ratio=0.1))
    assert [i for i, fate in fates.items() if fate == "below_band"] == ["00", "01"]
    assert [i for i, fate in fates.items() if fate == "above_band"] == ["18", "19"]
    assert [i for i, fate in fates.items() if fate == "selected"] == ["02", "03"]


def test_a_score_that_is_not_finite_is_an_error() -> None:
    for bad in (math.nan, math.inf, -math.inf):
        for row in (("b", "m", 0.0, bad), ("b", "m", bad, 0.0)):
            with pytest.raises(ValueError, match="not finite"):
                fates_of([("a", "m", 0.0, 0.0), row], SelectConfig())


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    """100 samples of two domains."""
    return make_pool(tmp_path, ["a", "b"] * 50, [3] * 100)


def make_pool(folder: Path, domains: list[str], tokens: list[int], truncated: int = 0) -> Pool:
    """A pool of which only the index is there, in two partitions; and three rejects."""
    rng, count = random.Random(0), len(tokens)
    ids = sorted(f"{rng.getrandbits(128):032x}" for _ in range(count))
    columns = [ids, pa.array(domains).dictionary_encode(), *[pa.array(tokens, pa.int32())] * 3]
    index = pa.table(columns, names=INDEX.names).cast(INDEX)
    for number, part in enumerate(split_by_partition(index, 2)):
        Folder(str(folder)).write_table(partition_file("index", number), part)
    counts = {"read": count + 3, "rejected": {"empty_response": 3}, "pool": count}
    counts["truncated"] = truncated
    return Pool(Folder(str(folder)), "key", "digest", [], 2, False, counts)


def written_scores(pool: Pool, name: str, columns: np.ndarray, lost: set[int]) -> ScoreTable:
    """Scores as the gathering leaves them; those of the rows `lost` could not be computed."""
    folder, start = pool.folder.sub(name), 0
    for number, index in enumerate(pool.index()):
        rows = range(start, start + index.num_rows)
        nll, entropy = ([None if r in lost else c[r] for r in rows] for c in columns)
        reasons = ["not_finite" if r in lost else None for r in rows]
        values = [index["sample_id"], index["response_tokens"], nll, entropy, reasons, reasons]
        arrays = [
            pa.array(v, f.type) if isinstance(v, list) else v
            for v, f in zip(values, SHARD, strict=True)
        ]
        folder.write_table(partition_file(SCORES, number), pa.table(arrays, schema=SHARD))
        start += index.num_rows
    return ScoreTable(FinishedArtifact(name, folder, {"partitions": pool.partitions}), LIKELIHOOD)


def test_the_ranking_holds_deltas_of_the_right_sign_and_its_counts_add_up(pool: Pool) -> None:
    columns = np.random.default_rng(0).normal(size=(4, 100))
    scores = {
        "base": written_scores(pool, "base", columns[:2], set()),
        "calibrated": written_scores(pool, "calibrated", columns[2:], set()),
    }
    ranking = rank(pool, scores, INSTRUCTDIFF)
    rows = pa.concat_tables(ranking.rows())
    assert rows.schema == RANKING
    assert rows["sample_id"].to_pylist() == list(pool.ids())
    assert np.array_equal(rows["delta_nll"].to_numpy(), columns[2] - columns[0])
    assert np.array_equal(rows["delta_entropy"].to_numpy(), columns[1] - columns[3])
    counts = fate_counts(ranking)
    assert counts == {"below_band": 10, "above_band": 10, "in_band": 80, "selected": 10}
    assert len(selected_ids(ranking)) == 10
    domains_table = by_domain(ranking)
    assert {d: v["selected"] for d, v in domains_table.items()} == {"a": 5, "b": 5}
    half = rows["delta_nll"].to_numpy()[::2]
    assert domains_table["a"]["delta_nll"]["p50"] == pytest.approx(np.median(half))


def test_a_sample_without_scores_is_a_reject_and_the_others_rank_without_it(pool: Pool) -> None:
    columns = np.random.default_rng(0).normal(size=(4, 100))
    scores = {
        "base": written_scores(pool, "base", columns[:2], {7, 60}),
        "calibrated": written_scores(pool, "calibrated", columns[2:], {60, 99}),
    }
    ranking = rank(pool, scores, INSTRUCTDIFF)
    ids = list(pool.ids())
    rows = pa.concat_tables(ranking.rows()).to_pylist()
    assert [row["sample_id"] for row in rows] == [
        i for n, i in enumerate(ids) if n not in {7, 60, 99}
    ]
    assert {r["sample_id"]: r["fate"] for r in rows} == plain_fates(
        [(r["sample_id"], r["domain"], r["delta_nll"], r["delta_entropy"]) for r in rows], 0.1, 0.1
    )
    assert ranking.rejected["sample_id"].to_pylist() == [ids[7], ids[60], ids[99]]
    assert selected_ids(ranking) == [r["sample_id"] for r in rows if r["fate"] == "selected"]
    counts = scored_counts(ranking)
    assert counts == {"rejected": {"empty_response": 3, "not_finite": 3}, "pool": 97}
    assert pool.counts["read"] == counts["pool"] + sum(counts["rejected"].values())
