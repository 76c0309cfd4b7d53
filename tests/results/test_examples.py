"""Which characters of a response each token colours, and how much of it is shown."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from instructdiff_ray.config.selection import SelectConfig
from instructdiff_ray.pool.partition import id_array
from instructdiff_ray.results.examples import (
    MAX_EXAMPLE_CHARACTERS,
    Example,
    Piece,
    Token,
    choose_examples,
    pieces_of,
    shorten,
    turns_of,
)
from instructdiff_ray.sample import Part
from instructdiff_ray.scoring.token_scores import TokenScores
from instructdiff_ray.selection.batches import RankingInputs
from instructdiff_ray.selection.ranking import rank
from instructdiff_ray.selection.strategies import STRATEGIES
from tests.selection.test_select import make_pool, written_scores

MEASURES = ("base_nll", "base_entropy", "calibrated_nll", "calibrated_entropy")


def scores_of(text: str, spans: list[tuple[int, int]], changes: list[float]) -> TokenScores:
    """Of one response; the base model's entropy is 3 nats throughout."""
    values = {"base_nll": 1.0, "base_entropy": 3.0, "calibrated_nll": 0.5}
    measures = {name: [value] * len(spans) for name, value in values.items()}
    measures["calibrated_entropy"] = [3.0 - change for change in changes]
    starts, ends = [start for start, _ in spans], [end for _, end in spans]
    return TokenScores([text], [0] * len(spans), starts, ends, measures)


@settings(max_examples=40)
@given(st.text(max_size=40), st.data())
def test_pieces_are_the_whole_text_and_hold_each_token_once(text: str, data: st.DataObject) -> None:
    places = st.integers(0, len(text))
    spans = sorted(
        (min(a, b), max(a, b)) for a, b in data.draw(st.lists(st.tuples(places, places)))
    )
    pieces = pieces_of(scores_of(text, spans, [0.5] * len(spans)), 0)
    assert "".join(piece.text for piece in pieces) == text
    assert sum(len(piece.tokens) for piece in pieces) == len(spans)


def test_tokens_that_share_a_character_are_one_piece_of_their_mean_change() -> None:
    scores = scores_of("a🙂 b", [(0, 1), (1, 2), (1, 2), (1, 2), (2, 4)], [0, -1, -2, -3, 1.5])
    pieces = pieces_of(scores, 0)
    assert [piece.text for piece in pieces] == ["a", "🙂", " b"]
    assert [piece.shade for piece in pieces] == ["", "unsure-4", "surer-4"]
    assert pieces[1].delta_entropy == -2
    assert [piece.visible for piece in pieces] == ["a", "🙂", "␣b"]


def test_what_a_guard_excluded_is_shown_under_that_guard_alone(tmp_path: Path) -> None:
    pool, draw = make_pool(tmp_path, ["math"] * 1000, [5] * 1000), np.random.default_rng(0)
    values = draw.normal(3, 0.2, (2, 1000))
    values[0, 400:420] += 5
    scores = {name: written_scores(pool, name, values, set()) for name in ("base", "calibrated")}
    warmup = id_array(pa.table({"sample_id": [*pool.ids()][500:600]}))
    config = SelectConfig(exclude_warmup=True)
    inputs = RankingInputs(
        STRATEGIES["instructdiff"], lambda _: config, warmup=warmup, guards=("typical",)
    )
    ranking = rank(pool, scores, inputs)
    assert {*ranking.table["excluded_by"].to_pylist()} == {None, "typical", "warmup"}
    (heading,) = (name for name in choose_examples(ranking) if name.startswith("Excluded"))
    assert all(400 <= place < 420 for place in choose_examples(ranking)[heading])


def test_a_conversation_shows_each_turn_and_only_as_much_as_there_is_room_for() -> None:
    parts = [Part("system", "Be kind."), Part("instruction", "Hello"), Part("response", "Hi")]
    parts += [Part("instruction", "More"), Part("response", "x" * 3000)]
    parts += [Part("instruction", "And more"), Part("response", "end")]
    shown = shorten(turns_of(parts, None))
    assert [turn.prompt for turn in shown] == ["Be kind.\n\nHello", "More"]
    text = "".join(piece.text for piece in shown[1].response)
    room = MAX_EXAMPLE_CHARACTERS - 2
    assert text == "x" * room + f"… ({3000 - room:,} more characters)… (1 more turns)"


def test_the_largest_changes_stand_in_the_order_of_the_text() -> None:
    changes = [0.0, -2.0, 0.1, 3.0, 0.2, -0.5, 0.3, 0.4, 1.0]
    spans = [(i, i + 1) for i in range(len(changes))]
    turns = turns_of(
        [Part("instruction", "?"), Part("response", "abcdefghi")],
        scores_of("abcdefghi", spans, changes),
    )
    example = Example("s", "math", "selected", {}, turns)
    assert "".join(piece.text for piece in example.largest_changes) == "bdfghi"
    assert Piece("x", [Token(1, 1, 1, 1)]).shade == ""
