"""The demo's own pool and model: faults as documented, answers right, a folder that loads."""

from __future__ import annotations

import ast
import json
import math
import re
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from random import Random

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from instructdiff_ray.demo import arithmetic, coding
from instructdiff_ray.demo.model import train_model
from instructdiff_ray.demo.pool import (
    BAD,
    BAD_SHARE,
    DOMAINS,
    DUPLICATE_SHARE,
    NOISE_SHARE,
    pool_lines,
    prose,
    write_pool,
)
from instructdiff_ray.demo.words import Kind

SIZE = 2000


def test_pool_is_fixed_by_its_seed(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_pool(str(tmp_path / name), seed, 300)
    first, again, other = ((tmp_path / name).read_bytes() for name in "abc")
    assert first == again
    assert len(set(first.split(b"\n")) & set(other.split(b"\n"))) < 5


def test_pool_has_the_documented_shares(tmp_path: Path) -> None:
    lines = pool_lines(0, SIZE)
    kinds = Counter(kind for kind, _ in lines)
    assert {kind: kinds.pop(kind) for kind in BAD} == dict.fromkeys(BAD, round(SIZE * BAD_SHARE))
    assert kinds.pop("duplicate") == round(SIZE * DUPLICATE_SHARE)
    assert kinds.pop("noise") == round(SIZE * NOISE_SHARE)
    assert list(kinds) == ["good"]

    write_pool(str(tmp_path / "pool"), 0, SIZE)
    written = (tmp_path / "pool").read_bytes().splitlines()
    assert written == [line for _, line in lines]
    assert len(written) == SIZE


def test_only_duplicates_repeat_a_good_line() -> None:
    lines = pool_lines(0, SIZE)
    good = [line for kind, line in lines if kind == "good"]
    copies = [line for kind, line in lines if kind == "duplicate"]
    assert len(set(good)) == len(good)
    assert len(set(copies)) == len(copies)
    assert set(copies) <= set(good)


def test_good_rows_cover_domains_schemas_and_lengths() -> None:
    rows = [json.loads(line) for kind, line in pool_lines(0, SIZE) if kind == "good"]
    domains = Counter(row["domain"] for row in rows)
    assert set(domains) == set(DOMAINS)
    assert min(domains.values()) > SIZE / 6
    schemas = Counter(next(iter(row)) for row in rows)
    assert set(schemas) == {"instruction", "question", "prompt", "messages"}
    chats = [[message["role"] for message in row["messages"]] for row in rows if "messages" in row]
    assert {len(chat) for chat in chats} == {2, 3, 4}
    assert all(chat[-2:] == ["user", "assistant"] for chat in chats)
    responses = [_response(row) for row in rows]
    assert all(response.strip() for response in responses)
    assert max(len(response.split()) for response in responses) > 120


def test_bad_rows_are_bad() -> None:
    bad = {kind: line for kind, line in pool_lines(0, SIZE) if kind in BAD}
    with pytest.raises(json.JSONDecodeError):
        json.loads(bad["broken JSON"])
    with pytest.raises(UnicodeDecodeError):
        bad["invalid UTF-8"].decode()
    assert json.loads(bad["invalid UTF-8"].decode(errors="replace"))["output"]
    assert json.loads(bad["null response"])["output"] is None
    assert json.loads(bad["empty response"])["output"] == ""
    assert isinstance(json.loads(bad["nested response"])["output"], list)
    assert isinstance(json.loads(bad["array"]), list)
    assert set(json.loads(bad["unknown schema"])) == {"headline", "story", "domain"}


@pytest.mark.parametrize("kind", arithmetic.KINDS)
def test_calculations_hold(kind: Kind) -> None:
    rng = Random(5)
    for _ in range(100):
        instruction, text, response = kind(rng)
        equations = _equations(response)
        assert equations, response
        for terms in equations:
            assert len({_value(term) for term in terms}) == 1, (instruction, text, response)
        # The answer given is made of numbers that were worked out.
        answer = re.split(r"(?<=\.) |\n", response)[-1]
        worked_out = {number for terms in equations for term in terms for number in _numbers(term)}
        assert worked_out.issuperset(_numbers(answer)), response


def test_answers_fit_the_questions() -> None:
    # Some questions can be answered from their numbers alone.
    expected: dict[str, Callable[[list[int]], Fraction | int]] = {
        "Find the mean": lambda numbers: Fraction(sum(numbers), len(numbers)),
        "Find the greatest common divisor": lambda numbers: math.gcd(*numbers),
        "Evaluate (": lambda numbers: (numbers[0] + numbers[1]) * numbers[2] - numbers[3],
        "Solve for x": lambda numbers: Fraction(numbers[2] - numbers[1], numbers[0]),
    }
    rng, seen = Random(7), Counter[str]()
    for _ in range(1000):
        instruction, text, response = arithmetic.pair(rng)
        for start, compute in expected.items():
            if instruction.startswith(start):
                seen[start] += 1
                assert _numbers(response)[-1] == compute(_numbers(instruction + text)), response
    assert set(seen) == set(expected)


@pytest.mark.parametrize("kind", coding.KINDS)
def test_code_parses_and_examples_hold(kind: Kind) -> None:
    rng = Random(6)
    for _ in range(100):
        _, text, response = kind(rng)
        for code in re.findall(r"```python\n(.*?)\n```", response, re.DOTALL):
            ast.parse(code)
        example = re.search(r"`(\w+\([^`]*\))` returns `([^`]*)`", response)
        if example:
            found: dict[str, object] = {}
            block = re.search(r"```python\n(.*?)\n```", response, re.DOTALL)
            exec(block[1] if block else text, found)
            assert eval(example[1], found) == ast.literal_eval(example[2]), response


def test_prose_is_no_copy_of_the_pool() -> None:
    texts = list(prose(0, SIZE))
    assert texts == list(prose(0, SIZE))
    assert len(texts) == SIZE
    assert not any("###" in text for text in texts)
    rows = [json.loads(line) for kind, line in pool_lines(0, SIZE) if kind == "good"]
    # Short answers and plain facts recur; the rest must not.
    shared = set(texts) & {_response(row) for row in rows}
    assert len(shared) < 0.1 * SIZE


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a training step cheap; one thread, as two wait for each other on a busy machine."""
    monkeypatch.setattr("instructdiff_ray.demo.model.BATCH", 2)
    monkeypatch.setattr("instructdiff_ray.demo.model.THREADS", 1)


def test_model_trains_saves_and_loads(tmp_path: Path, small_steps: None) -> None:
    reports: list[tuple[int, int, float]] = []
    texts = list(prose(0, 300))
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    train_model(str(tmp_path / "a"), texts, steps=20, report=lambda *values: reports.append(values))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert [step for step, _, _ in reports] == [10, 20]
    assert reports[-1][2] < reports[0][2]

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "a", local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "a", local_files_only=True)
    assert len(tokenizer) == model.config.vocab_size
    assert model.config.eos_token_id == tokenizer.eos_token_id != tokenizer.pad_token_id
    text = "Zoë has 12 apples.\n\n    return x ☃\n"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    chat = [{"role": "user", "content": "Hello"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) == (
        "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    )
    ids = torch.tensor([tokenizer(texts[0]).input_ids])
    with torch.no_grad():
        assert model(input_ids=ids, labels=ids).loss < 7.6  # log(2048), a uniform guess


def test_training_is_fixed_by_its_seed(tmp_path: Path, small_steps: None) -> None:
    texts = list(prose(0, 100))
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train_model(str(tmp_path / name), texts, seed, steps=2)
    first, again, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert first == again
    assert first != other


def _response(row: dict[str, object]) -> str:
    """The response of a row in any of the schemas."""
    messages = row.get("messages")
    if isinstance(messages, list):
        return str(messages[-1]["content"])
    return str(row.get("output") or row.get("answer") or row.get("completion"))


def _equations(response: str) -> list[list[str]]:
    """The sides of every equation in a text; an unknown x is replaced by its value."""
    solved = re.findall(r"x = [^=]*= (-?\d+)\.", response)
    if solved:
        response = re.sub(r"\bx\b", f"({solved[-1]})", response)
    number = r"\(*-?\d+\)*"
    side = rf"\(*{number}(?: [-+*/] \(*{number})*"
    return [match[0].split(" = ") for match in re.finditer(rf"{side}(?: = {side})+", response)]


def _numbers(text: str) -> list[int]:
    """The integers in a text."""
    return [int(number) for number in re.findall(r"(?<!\d)-?\d+", text)]


def _value(term: str) -> Fraction:
    """The exact value of a term of integers, brackets and the four operations."""
    return Fraction(eval(re.sub(r"(\d+)", r"Fraction(\1)", term), {"Fraction": Fraction}))
