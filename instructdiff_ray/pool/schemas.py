"""From a source row to a sample: whatever schema it came in, what is asked and what is answered."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from instructdiff_ray.sample import Kind, Part, Reject

# (instruction, input, response) columns of single-turn schemas, tried in this order.
SINGLE_TURN: tuple[tuple[str, str | None, str], ...] = (
    ("instruction", "input", "output"),
    ("instruction", "input", "response"),
    ("prompt", None, "completion"),
    ("prompt", None, "response"),
    ("question", None, "answer"),
    ("question", None, "response"),
)
MULTI_TURN = ("messages", "conversations")
# What columns of other schemas are called, the likeliest first, to suggest them.
ASKED = ("instruction", "prompt", "question", "query", "problem", "input", "user", "human", "task")
ANSWERED = (
    *("response", "output", "answer", "completion", "solution", "reply", "assistant", "target"),
    *("chosen", "generation", "explanation"),
)
GIVEN = ("context", "input", "passage")
ROLES: dict[str, Kind] = {
    "system": "system",
    "user": "instruction",
    "human": "instruction",
    "assistant": "response",
    "gpt": "response",
    "model": "response",
}


def parse_row(text: str, columns: Mapping[str, str] | None = None) -> tuple[dict, list[Part]]:
    """The row that `text` (JSON) holds, and its parts.

    columns: the user's names for `instruction`, `input`, `response`, or `messages`.
    Raises Reject for whatever is no sample.
    """
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Reject("invalid_json", str(error)) from None
    if not isinstance(row, dict):
        raise Reject("not_an_object", f"the row is a JSON {_json_type(row)}")
    parts = _parts(row, columns)
    for part in parts:
        _check_unicode(part.text)
    return row, parts


def suggest_columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, str] | None:
    """What `data.columns` may have to be for rows of a schema that is not known, by the names of
    their columns and by what these hold; None where neither tells."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    values = {name: [row[name] for row in rows if row.get(name) is not None] for name in names}
    for name in names:
        if values[name] and all(map(_is_conversation, values[name])):
            return {"messages": name}
    texts = [n for n in names if values[n] and all(isinstance(v, str) for v in values[n])]
    response = _called(texts, ANSWERED)
    instruction = _called([name for name in texts if name != response], ASKED)
    if response is None or instruction is None:
        return None
    others = {name.lower(): name for name in texts if name not in (instruction, response)}
    given = next((others[name] for name in GIVEN if name in others), None)
    return {"instruction": instruction, **({"input": given} if given else {}), "response": response}


def _called(names: Sequence[str], words: Sequence[str]) -> str | None:
    """The name that is the first of the words that one is, or else has one of them in it."""
    for word in words:
        for name in names:
            if name.lower() == word:
                return name
    for word in words:
        for name in names:
            if word in (
                piece.lower() for piece in re.findall("[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)
            ):
                return name
    return None


def _is_conversation(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(
            isinstance(turn, dict) and (turn.keys() >= {"role", "content"} or "from" in turn)
            for turn in value
        )
    )


def domain_of(row: Mapping[str, Any], column: str | None, default: str) -> str:
    """The row's domain; Reject where its column holds no name."""
    if column is None:
        return default
    domain = row.get(column)
    if not isinstance(domain, str) or not domain.strip():
        raise Reject("no_domain", f"column {column!r} holds {_shown(domain)}, not a name")
    _check_unicode(domain)
    return domain


def _parts(row: Mapping[str, Any], columns: Mapping[str, str] | None) -> list[Part]:
    if columns is not None and "messages" in columns:
        return _conversation(row.get(columns["messages"]))
    if columns is not None:
        names = (columns["instruction"], columns.get("input"), columns["response"])
        return _single_turn(row, *names)
    for name in MULTI_TURN:
        if row.get(name) is not None:
            return _conversation(row[name])
    present = [names for names in SINGLE_TURN if names[0] in row and names[2] in row]
    # A table of several schemas has all their columns in every row, with nulls.
    filled = [names for names in present if None not in (row[names[0]], row[names[2]])]
    for names in filled or present:
        return _single_turn(row, *names)
    known = " | ".join(
        [*MULTI_TURN, *(f"{instruction}+{response}" for instruction, _, response in SINGLE_TURN)]
    )
    raise Reject(
        "unknown_schema", f"columns {_shown(sorted(map(str, row)))}; known schemas: {known}"
    )


def _single_turn(
    row: Mapping[str, Any], instruction: str, extra: str | None, response: str
) -> list[Part]:
    asked = _string(row, instruction)
    given = _string(row, extra) if extra is not None and row.get(extra) is not None else ""
    answer = _string(row, response)
    if not asked.strip() and not given.strip():
        raise Reject("empty_instruction", f"{instruction!r} has no text")
    if not answer.strip():
        raise Reject("empty_response", f"{response!r} has no text")
    parts = [Part("instruction", asked), Part("input", given), Part("response", answer)]
    return [part for part in parts if part.kind != "input" or part.text.strip()]


def _conversation(turns: Any) -> list[Part]:
    """Parts of `messages` (role, content) or ShareGPT `conversations` (from, value)."""
    if not isinstance(turns, list):
        raise Reject("bad_turn", f"the conversation is a JSON {_json_type(turns)}, not a list")
    parts: list[Part] = []
    for turn in turns:
        if not isinstance(turn, dict):
            raise Reject("bad_turn", f"a turn is a JSON {_json_type(turn)}, not an object")
        role_name, text_name = ("from", "value") if "from" in turn else ("role", "content")
        kind = ROLES.get(str(turn.get(role_name)).lower())
        if kind is None:
            raise Reject("bad_turn", f"unknown {role_name} {_shown(turn.get(role_name))}")
        parts.append(Part(kind, _string(turn, text_name)))
    # What follows the last response can't change how it is scored.
    while parts and parts[-1].kind != "response":
        parts.pop()
    if not parts:
        raise Reject("no_response", "the conversation has no assistant turn")
    _check_order(parts)
    return parts


def _check_order(parts: list[Part]) -> None:
    expected: Kind = "instruction"
    for position, (kind, text) in enumerate(parts):
        if kind == "system" and position == 0:
            continue
        if kind != expected:
            raise Reject("bad_turn", f"turn {position + 1}: expected {expected}, found {kind}")
        if not text.strip():
            raise Reject(f"empty_{kind}", f"turn {position + 1} has no text")
        expected = "response" if kind == "instruction" else "instruction"


def _string(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    if not isinstance(value, str):
        raise Reject("not_a_string", f"{name!r} holds a JSON {_json_type(value)}, not a string")
    return value


def _check_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:  # JSON may escape half of a surrogate pair
        raise Reject("invalid_unicode", "the text holds a lone surrogate") from None


def _json_type(value: Any) -> str:
    names = {dict: "object", list: "array", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else text[:200] + "…"
