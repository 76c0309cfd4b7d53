"""Rows of every schema become the same samples; every other row is a reject with its reason."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from instructdiff_ray.pool.schemas import domain_of, parse_row, suggest_columns
from instructdiff_ray.sample import Part, Reject, sample_id

ASKED = ("instruction", "What is 2 + 2?")
GIVEN = ("response", "4")


def parts_of(row: Any, columns: dict[str, str] | None = None) -> list[tuple[str, str]]:
    return [tuple(part) for part in parse_row(json.dumps(row), columns)[1]]


def reject_of(text: str, columns: dict[str, str] | None = None) -> Reject:
    with pytest.raises(Reject) as raised:
        parse_row(text, columns)
    assert raised.value.reason.isidentifier()
    assert raised.value.detail
    assert len(raised.value.detail) < 1000
    return raised.value


def chat(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]


def sharegpt(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"from": role, "value": content} for role, content in turns]


# Schemas


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": ASKED[1], "output": "4"},
        {"instruction": ASKED[1], "input": "", "output": "4"},
        {"instruction": ASKED[1], "input": " \n", "output": "4"},
        {"instruction": ASKED[1], "input": None, "output": "4"},
        {"instruction": ASKED[1], "input": "", "response": "4"},
        {"prompt": ASKED[1], "completion": "4"},
        {"prompt": ASKED[1], "response": "4"},
        {"question": ASKED[1], "answer": "4"},
        {"question": ASKED[1], "response": "4", "input": "not of this schema"},
        {"messages": chat(("user", ASKED[1]), ("assistant", "4"))},
        {"messages": chat(("User", ASKED[1]), ("ASSISTANT", "4"))},
        {"messages": chat(("user", ASKED[1]), ("assistant", "4"), ("user", "Thanks."))},
        {"conversations": sharegpt(("human", ASKED[1]), ("gpt", "4"))},
        {"conversations": sharegpt(("human", ASKED[1]), ("model", "4"))},
        {"conversations": chat(("user", ASKED[1]), ("assistant", "4"))},
        {"messages": sharegpt(("human", ASKED[1]), ("gpt", "4")), "id": 7},
        {"messages": None, "instruction": ASKED[1], "output": "4"},
    ],
)
def test_each_schema_gives_the_same_sample(row: dict[str, Any]) -> None:
    assert parts_of(row) == [ASKED, GIVEN]


def test_alpacas_input_is_a_part_of_its_own_and_kept_to_the_letter() -> None:
    row = {"instruction": " Sum up. \n", "input": "\tA text\n\n", "output": " Short. "}
    expected = [("instruction", " Sum up. \n"), ("input", "\tA text\n\n"), ("response", " Short. ")]
    assert parts_of(row) == expected
    assert parts_of({**row, "response": "of no matter"}) == expected


def test_an_input_alone_can_be_what_is_asked() -> None:
    row = {"instruction": "", "input": "2 + 2 =", "output": "4"}
    assert parts_of(row) == [("instruction", ""), ("input", "2 + 2 ="), GIVEN]


def test_a_conversation_keeps_its_turns_and_its_system_message() -> None:
    turns = [("system", "Be brief."), ("user", "a"), ("assistant", "b"), ("user", "c")]
    turns += [("assistant", "d")]
    kinds = ["system", "instruction", "response", "instruction", "response"]
    expected = list(zip(kinds, ["Be brief.", "a", "b", "c", "d"], strict=True))
    assert parts_of({"messages": chat(*turns)}) == expected
    renamed = [
        ({"user": "human", "assistant": "gpt"}.get(role, role), text) for role, text in turns
    ]
    assert parts_of({"conversations": sharegpt(*renamed)}) == expected


@pytest.mark.parametrize("filled", [("instruction", "output"), ("prompt", "completion")])
def test_a_row_of_a_table_that_mixes_schemas_is_read_by_the_one_it_fills(
    filled: tuple[str, str],
) -> None:
    names = ["messages", "instruction", "input", "output", "prompt", "completion", "response"]
    row = {**dict.fromkeys(names), filled[0]: ASKED[1], filled[1]: "4"}
    assert parts_of(row) == [ASKED, GIVEN]


def test_columns_that_the_user_names_go_before_all_schemas() -> None:
    row = {"q": ASKED[1], "ctx": "more", "a": "4", "instruction": "no", "output": "no"}
    assert parts_of(row, {"instruction": "q", "response": "a"}) == [ASKED, GIVEN]
    with_input = {"instruction": "q", "input": "ctx", "response": "a"}
    assert parts_of(row, with_input) == [ASKED, ("input", "more"), GIVEN]
    assert parts_of({"q": ASKED[1], "a": "4"}, with_input) == [ASKED, GIVEN]
    talk = {"talk": chat(("user", ASKED[1]), ("assistant", "4")), "messages": "no"}
    assert parts_of(talk, {"messages": "talk"}) == [ASKED, GIVEN]
    missing = reject_of(
        json.dumps({"q": "?", "output": "4"}), {"instruction": "q", "response": "a"}
    )
    assert missing.reason == "not_a_string"
    assert "'a'" in missing.detail


def test_the_row_comes_back_whole() -> None:
    row = {"instruction": "a", "output": "b", "score": 0.5, "tags": ["x"]}
    assert parse_row(json.dumps(row))[0] == row


@settings(deadline=None, max_examples=100, derandomize=True)
@given(st.text(), st.text(), st.text(), st.booleans())
def test_any_text_comes_through_to_the_letter(
    asked: str, more: str, answer: str, ascii_only: bool
) -> None:
    row = {"instruction": asked, "input": more, "output": answer}
    text = json.dumps(row, ensure_ascii=ascii_only)
    if answer.strip() and (asked.strip() or more.strip()):
        expected = [Part("instruction", asked), Part("input", more), Part("response", answer)]
        assert parse_row(text)[1] == [p for p in expected if p.kind != "input" or p.text.strip()]
    else:
        assert reject_of(text).reason in ("empty_instruction", "empty_response")


# Rejects


def alpaca(**fields: Any) -> str:
    return json.dumps({"instruction": "a", "input": "", "output": "b", **fields})


def talk(*turns: Any) -> str:
    return json.dumps({"messages": list(turns)})


USER, ANSWER = chat(("user", "a"), ("assistant", "b"))


@pytest.mark.parametrize(
    ("text", "reason", "said"),
    [
        ("", "invalid_json", "Expecting value"),
        ('{"instruction": "a", "outp', "invalid_json", "Unterminated"),
        ('{"instruction": "a"} {}', "invalid_json", "Extra data"),
        ('{"instruction": "a\nb", "output": "c"}', "invalid_json", "control character"),
        ("[" * 100_000, "invalid_json", ""),
        ('{"n": ' * 100_000, "invalid_json", ""),
        ('{"n": %s}' % ("9" * 5000), "invalid_json", "4300"),
        ('["a", "b"]', "not_an_object", "array"),
        ('"text"', "not_an_object", "string"),
        ("null", "not_an_object", "null"),
        ("true", "not_an_object", "boolean"),
        ("NaN", "not_an_object", "number"),
        ("{}", "unknown_schema", "instruction+output"),
        ('{"headline": "a", "story": "b"}', "unknown_schema", "headline"),
        ('{"instruction": "a"}', "unknown_schema", "'instruction'"),
        ('{"Instruction": "a", "Output": "b"}', "unknown_schema", "'Instruction'"),
        (alpaca(output=None), "not_a_string", "'output' holds a JSON null"),
        (alpaca(output=[["b"], []]), "not_a_string", "array"),
        (alpaca(output={"text": "b"}), "not_a_string", "object"),
        (alpaca(output=7), "not_a_string", "number"),
        (alpaca(output=float("nan")), "not_a_string", "number"),
        (alpaca(output=True), "not_a_string", "boolean"),
        (alpaca(instruction=None), "not_a_string", "'instruction'"),
        (alpaca(input=3), "not_a_string", "'input'"),
        (alpaca(output=""), "empty_response", "'output'"),
        (alpaca(output=" \n\t\u3000"), "empty_response", "'output'"),
        (alpaca(instruction=" "), "empty_instruction", "'instruction'"),
        (alpaca(output="b\ud800"), "invalid_unicode", "surrogate"),
        (alpaca(instruction="\udc00a"), "invalid_unicode", "surrogate"),
        (talk(), "no_response", "no assistant turn"),
        (talk(USER), "no_response", "no assistant turn"),
        ('{"messages": "a"}', "bad_turn", "string"),
        ('{"messages": {"role": "user"}}', "bad_turn", "object"),
        (talk("a"), "bad_turn", "string"),
        (talk(USER, {"role": "tool", "content": "b"}), "bad_turn", "'tool'"),
        (talk(USER, {"role": None, "content": "b"}), "bad_turn", "None"),
        (talk(USER, {"role": ["assistant"], "content": "b"}), "bad_turn", "assistant"),
        (talk(USER, {"content": "b"}), "bad_turn", "role"),
        (talk(ANSWER), "bad_turn", "turn 1: expected instruction, found response"),
        (talk(USER, USER, ANSWER), "bad_turn", "turn 2: expected response, found instruction"),
        (talk(USER, ANSWER, ANSWER), "bad_turn", "turn 3: expected instruction, found response"),
        (talk(USER, ANSWER, *chat(("system", "x")), USER, ANSWER), "bad_turn", "turn 3"),
        (talk({"role": "user", "content": None}, ANSWER), "not_a_string", "'content'"),
        (talk({"role": "user", "content": [{"text": "a"}]}, ANSWER), "not_a_string", "array"),
        (talk({"role": "user"}, ANSWER), "not_a_string", "'content'"),
        (talk({"role": "user", "content": " "}, ANSWER), "empty_instruction", "turn 1"),
        (talk(USER, {"role": "assistant", "content": ""}), "empty_response", "turn 2"),
        (talk(USER, {"role": "assistant", "content": "\ud800"}), "invalid_unicode", "surrogate"),
    ],
    ids=lambda text: text[:60],
)
def test_a_row_that_is_no_sample_is_rejected_with_its_reason(
    text: str, reason: str, said: str
) -> None:
    reject = reject_of(text)
    assert reject.reason == reason
    assert said in reject.detail


def test_a_reject_of_a_huge_row_has_a_short_detail() -> None:
    assert len(reject_of(json.dumps({"x" * 1_000_000: 1})).detail) < 1000
    turn = {"role": "x" * 1_000_000, "content": "a"}
    assert len(reject_of(talk(turn)).detail) < 1000


@pytest.mark.parametrize("depth", [*range(900, 1010, 7), 100_000])
def test_deep_nesting_anywhere_in_a_row_is_no_crash(depth: int) -> None:
    deep = "[" * depth + "]" * depth
    for text in (
        '{"instruction": "a", "output": DEEP}',
        '{"messages": DEEP}',
        '{"messages": [{"role": DEEP, "content": "a"}]}',
        '{"messages": [{"role": "user", "content": DEEP}]}',
        '{"other": DEEP}',
    ):
        reject_of(text.replace("DEEP", deep))
    try:
        row, _ = parse_row(
            '{"instruction": "a", "output": "b", "domain": DEEP}'.replace("DEEP", deep)
        )
    except Reject:
        return
    with pytest.raises(Reject):
        domain_of(row, "domain", "general")


SCALAR = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
NAMES = st.sampled_from(
    ["instruction", "input", "output", "response", "prompt", "completion", "question", "answer"]
    + ["messages", "conversations", "role", "content", "from", "value"]
)
ROLE = st.sampled_from(["system", "user", "human", "assistant", "gpt", "tool", ""])
VALUE = st.recursive(
    SCALAR | ROLE | st.characters(categories=["Cs"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None, max_examples=200, derandomize=True)
@given(st.dictionaries(NAMES, VALUE, max_size=6) | VALUE)
@example({"messages": [{"from": None, "role": "user", "content": "a"}]})
def test_any_json_is_a_sample_or_a_reject(value: Any) -> None:
    try:
        row, parts = parse_row(json.dumps(value))
    except Reject as reject:
        reject.detail.encode()
        return
    assert isinstance(row, dict)
    assert parts[-1].kind == "response"
    kinds = "".join(part.kind[0:3] + " " for part in parts)
    assert kinds.count("res") == kinds.count("ins ")
    for part in parts:
        part.text.encode()
        assert part.text.strip() or part.kind in ("system", "instruction")
    assert len(sample_id(parts)) == 32


# Identity and domain


def test_an_id_depends_on_the_content_and_on_nothing_else() -> None:
    rows = [
        {"instruction": ASKED[1], "output": "4"},
        {"output": "4", "instruction": ASKED[1], "input": " ", "source": "here", "n": 1},
        {"question": ASKED[1], "answer": "4"},
        {"messages": chat(("user", ASKED[1]), ("assistant", "4"))},
    ]
    # Written in pools and selections: another value would part them from each other.
    expected = "4950ae9694419a1bceb2e626967a48e4"
    assert {sample_id(parse_row(json.dumps(row))[1]) for row in rows} == {expected}


def test_samples_that_differ_have_different_ids() -> None:
    rows: list[dict[str, Any]] = [
        {"instruction": "a", "output": "b"},
        {"instruction": "a", "output": "b "},
        {"instruction": "a", "input": "b", "output": "b"},
        {"instruction": "ab", "output": "b"},
        {"instruction": "a\nb", "output": "b"},
        {"messages": chat(("system", "a"), ("user", "a"), ("assistant", "b"))},
        {"messages": chat(("user", "a"), ("assistant", "b")) * 2},
    ]
    assert len({sample_id(parse_row(json.dumps(row))[1]) for row in rows}) == len(rows)


def test_a_rows_domain_comes_from_its_column_or_is_the_configured_one() -> None:
    assert domain_of({"domain": "math"}, None, "general") == "general"
    assert domain_of({"topic": "math"}, "topic", "general") == "math"


@pytest.mark.parametrize("value", [None, "", "  ", 7, ["math"], {"name": "math"}, "\ud800"])
def test_a_row_without_a_domain_in_its_column_is_a_reject(value: Any) -> None:
    with pytest.raises(Reject) as reject:
        domain_of({"topic": value}, "topic", "general")
    assert reject.value.reason in ("no_domain", "invalid_unicode")
    with pytest.raises(Reject):
        domain_of({}, "topic", "general")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"query": "q", "answer": "a"}, {"instruction": "query", "response": "answer"}),
        ({"input": "q", "target": "a"}, {"instruction": "input", "response": "target"}),
        (
            {"id": "1", "problem": "q", "answer": 4, "solution": "a"},
            {"instruction": "problem", "response": "solution"},
        ),
        (
            {"user_query": "q", "GPTResponse": "a", "Context": "c"},
            {"instruction": "user_query", "input": "Context", "response": "GPTResponse"},
        ),
        (
            {"prompt": "q", "chosen": "a", "rejected": "b"},
            {"instruction": "prompt", "response": "chosen"},
        ),
        (
            {"id": "1", "dialog": [{"role": "user", "content": "q"}], "answer": "a"},
            {"messages": "dialog"},
        ),
        ({"turns": [{"from": "human", "value": "q"}]}, {"messages": "turns"}),
        ({"text": "q"}, None),
        ({"question": "q", "label": "a"}, None),
        ({"question": "q", "answer": ["a"]}, None),
    ],
)
def test_columns_are_suggested_by_their_names(row: dict, expected: dict | None) -> None:
    assert suggest_columns([row, dict.fromkeys(row)]) == expected
