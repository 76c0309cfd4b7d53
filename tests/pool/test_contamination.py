"""What of a benchmark is found in samples, and what is not taken for a trace."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructdiff_ray.pool.contamination import (
    ANYWHERE,
    LEAST_WORDS,
    Benchmarks,
    BenchmarkText,
    index_benchmarks,
)
from instructdiff_ray.sample import Part

LONG = "Natalia sold clips to 48 of her friends in April, and then half as many clips in May."
SHORT = "Which gas do plants take from the air at night?"  # ten words
FEW = "Factor x^2 - 1."


def index(*texts: str, ngram: int = 13, asked: bool = True) -> Benchmarks:
    return index_benchmarks(
        [BenchmarkText("test.jsonl", line, text, asked) for line, text in enumerate(texts, 1)],
        ngram,
    )


def sample(question: str, answer: str = "I don't know.") -> list[Part]:
    return [Part("instruction", question), Part("response", answer)]


def detail(benchmarks: Benchmarks, parts: list[Part]) -> str | None:
    (reject,) = benchmarks.check([parts])
    assert reject is None or reject.reason == "contaminated"
    return reject and reject.detail


def test_a_run_of_words_is_found_in_questions_and_answers_across_lines_and_markup() -> None:
    benchmarks = index("Something else, which is long enough to be looked for on its own.", LONG)
    wrapped = "**natalia** sold CLIPS\nto 48 of her friends\nin april; and then half"
    expected = (
        "13 words of test.jsonl line 2: natalia sold clips to 48 of her friends in april and then"
        " half"
    )
    assert detail(benchmarks, sample(f"Read this: {wrapped} a tale.")) is not None
    assert detail(benchmarks, sample(LONG)) == expected
    assert detail(benchmarks, sample("Tell a tale.", f"Once upon a time {LONG}")) is not None
    twelve = "sold clips to 48 of her friends in April, and then half"
    assert detail(benchmarks, sample(f"Once {twelve}")) is None
    assert detail(index(LONG, ngram=8), sample(f"Once {twelve}")) is not None


def test_a_short_text_does_not_slip_through() -> None:
    benchmarks = index(SHORT, FEW)
    assert detail(benchmarks, sample(f"Answer briefly. {SHORT} Give one word.")) is not None
    assert detail(benchmarks, sample("Go on.", f"He asked: {SHORT}")) is not None
    assert detail(benchmarks, sample("Which gas do plants take from the air?")) is None
    for question in (FEW, f"Solve the task.\n{FEW}\nShow your work.", "factor X^2-1"):
        assert detail(benchmarks, sample(question)) == "4 words of test.jsonl line 2: factor x 2 1"
    given = [Part("instruction", "Solve it."), Part("input", FEW), Part("response", "No.")]
    assert detail(benchmarks, given) is not None


def test_a_few_words_are_no_trace_within_other_text_nor_in_an_answer() -> None:
    benchmarks = index(FEW, "None of the above", "Yes", "42")
    assert detail(benchmarks, sample("Why can I factor x^2 - 1 here?", FEW)) is None
    assert detail(benchmarks, sample("Choose.", "None of the above")) is None
    assert detail(benchmarks, sample("Yes", "42")) is None
    # Of a column that is no question, a few words say nothing at all.
    assert detail(index("abstract algebra", asked=False), sample("Abstract algebra")) is None
    assert index("Yes", "…").places == []
    option = "It is the responsibility of the board of directors"
    assert index(option, asked=False).places == []
    answer = f"Who is? {option}, says the law."
    assert detail(index(option), sample(answer)) is not None
    assert detail(index(f"{option} and of nobody else here", asked=False), sample(answer)) is None


def test_two_characters_of_a_script_without_spaces_are_a_word() -> None:
    party, decision = "中国共产党中央委员会", "根据中华人民共和国全国人民代表大会的决定如何"
    assert detail(index(party), sample("他是谁？", f"他曾任{party}委员。")) is None
    assert detail(index(party), sample(party)) is not None
    benchmarks = index(f"{decision}而且在什么条件下可以改变它")
    assert detail(benchmarks, sample(f"请问{decision}？")) is None
    assert detail(benchmarks, sample(f"请问{decision}而且在什么条件下？")) is not None
    assert detail(index(decision), sample("什么？", f"请问{decision}？")) is not None
    (hindi,) = index("भारत की राजधानी नई दिल्ली है").check(
        [sample("क्या?", "भारत की राजधानी नई दिल्ली है।")]
    )
    assert hindi is None


def test_what_is_looked_for_is_known_by_its_texts_and_not_by_their_files() -> None:
    here = index_benchmarks([BenchmarkText("a.jsonl", 1, LONG, True)], 13)
    there = index_benchmarks([BenchmarkText("b.jsonl", 7, LONG.upper(), True)], 13)
    other = index_benchmarks([BenchmarkText("a.jsonl", 1, SHORT, True)], 13)
    assert here.digest == there.digest != other.digest
    assert index(LONG, SHORT, FEW).digest == index(FEW, LONG, SHORT).digest


def test_the_first_line_that_is_found_is_named_in_every_process() -> None:
    lines = [f"Factor x^{n} - 1." for n in range(9)]
    found = detail(index(*reversed(lines)), sample("\n".join(["Solve:", *lines])))
    assert found == "4 words of test.jsonl line 9: factor x 0 1"


def brute_force(benchmarks: list[list[str]], ngram: int, parts: list[list[str]]) -> bool:
    """parts: a question of one line, and an answer."""

    def within(run: list[str], text: list[str]) -> bool:
        return any(text[n : n + len(run)] == run for n in range(len(text) - len(run) + 1))

    for text in benchmarks:
        if len(text) >= min(ANYWHERE, ngram):
            size = min(ngram, len(text))
            runs = [text[n : n + size] for n in range(len(text) - size + 1)]
            if any(within(run, part) for run in runs for part in parts):
                return True
        elif len(text) >= LEAST_WORDS and parts[0] == text:
            return True
    return False


TEXTS = st.lists(st.sampled_from("ab"), max_size=12)


@given(
    st.lists(TEXTS, max_size=3),
    st.lists(st.tuples(TEXTS, TEXTS), max_size=5),
    st.integers(5, 10),
)
def test_what_is_found_is_what_a_look_at_every_run_finds(
    texts: list[list[str]], pairs: list[tuple[list[str], list[str]]], ngram: int
) -> None:
    benchmarks = index(*map(" ".join, texts), ngram=ngram)
    samples = [sample(" ".join(question), " ".join(answer)) for question, answer in pairs]
    found = [reject is not None for reject in benchmarks.check(samples)]
    assert found == [brute_force(texts, ngram, [*pair]) for pair in pairs]


@pytest.mark.parametrize("samples", [[], [sample("", "")], [sample("😀", "…")]])
def test_where_there_are_no_words_nothing_is_found(samples: list[list[Part]]) -> None:
    assert index(LONG, FEW).check(samples) == [None] * len(samples)
