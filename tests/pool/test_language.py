"""In which language a sample is, and that nothing is rejected on a guess."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructdiff_ray.errors import UserError
from instructdiff_ray.pool import language
from instructdiff_ray.pool.language import check_languages, foreign, language_of
from instructdiff_ray.sample import Part

TEXTS = {
    "en": "The river rises in the hills and meets the sea behind the old harbour.",
    "de": "Der Fluss entspringt in den Bergen und mündet hinter dem alten Hafen ins Meer.",
    "fr": "La rivière prend sa source dans les collines et rejoint la mer derrière le port.",
    "zh": "这条河发源于山区，在老港口后面流入大海，夏天许多人来这里游泳和钓鱼。",
}
PYTHON = """def mean(values):
    total = sum(values)
    return total / len(values) if len(values) > 0 else 0.0
result = mean([1, 2, 3]); print(result)
"""
LATEX = r"\frac{\partial L}{\partial w} = \sum_i x_i \cdot (y_i - \hat{y}_i) = \alpha"


def sample(question: str, answer: str) -> list[Part]:
    return [Part("instruction", question), Part("response", answer)]


@pytest.mark.parametrize("code", TEXTS)
def test_a_text_of_a_line_tells_its_language(code: str) -> None:
    assert language_of(TEXTS[code]) == code


@pytest.mark.parametrize(
    "text",
    ["", "42", "Berlin", "😀" * 30, PYTHON, LATEX, f"```python\n{PYTHON}\n```", "x = 3\n" * 9],
)
def test_code_formulas_and_a_few_words_are_of_no_language(text: str) -> None:
    assert language_of(text) is None


def test_the_response_decides_and_where_it_tells_nothing_the_question() -> None:
    def reason(question: str, answer: str) -> str | None:
        reject = foreign(sample(question, answer), ["en"])
        assert reject is None or reject.reason == "language"
        return reject and reject.detail

    assert reason(TEXTS["en"], TEXTS["en"]) is None
    assert reason(TEXTS["de"], TEXTS["en"]) is None
    assert reason(TEXTS["en"], TEXTS["fr"]) == "the response is in fr"
    assert reason(TEXTS["de"], PYTHON) == "the question is in de"
    assert reason(TEXTS["en"], PYTHON) is None
    assert reason("7 * 6 = ?", "42") is None
    # Explained in German, with code between.
    assert reason("Why?", f"{TEXTS['de']}\n```\n{PYTHON}```") == "the response is in de"
    assert foreign(sample(TEXTS["en"], TEXTS["fr"]), ["en", "fr"]) is None


@given(st.text(), st.text())
def test_any_text_is_judged(question: str, answer: str) -> None:
    reject = foreign(sample(question, answer), ["en"])
    assert reject is None or reject.detail[-2:] != "en"


def test_a_language_that_is_not_known_is_refused_and_so_is_a_package_that_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check_languages(["en", "zh"])
    with pytest.raises(
        UserError, match=r"^clean.languages: english is not known; use some of .*, en,"
    ):
        check_languages(["en", "english"])
    monkeypatch.setattr(language, "PACKAGE", "no_such_package")
    check_languages([])
    language._identifier.cache_clear()  # as in a worker whose machine lacks it
    with pytest.raises(UserError, match=r"pip install 'instructdiff-ray\[clean\]'$"):
        check_languages(["en"])
    with pytest.raises(UserError, match=r"on all machines: pip install"):
        foreign(sample(TEXTS["en"], TEXTS["fr"]), ["en"])
