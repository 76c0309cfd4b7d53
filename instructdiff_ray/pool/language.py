"""Samples in other languages than those that are wanted, by py3langid (the extra `clean`).

The responses decide, for they are what a model learns to write: a translation into French is
French, whoever asks. Where they tell nothing, what is asked decides. Code and formulas are of no
language, and of a few words none is sure, so a text decides only where the rest of it is long
enough and the library is sure; a sample whose texts decide nothing stays.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any

from instructdiff_ray.errors import UserError, require
from instructdiff_ray.sample import Part, Reject

PACKAGE = "py3langid"
NO_LANGUAGE = "zxx"  # ISO 639's code for what is no language, one of the library's classes
# As sure as that, none of 7,500 English responses, of which a quarter are code, was anything else.
SURE = 0.8
LETTERS = 20
CHARACTERS = 2000  # a language shows itself in as many, and the library's time grows with them
FENCED = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
CODE = re.compile(r"[{}=;<>\[\]\\|_]|^(?: {4}|\t)")


def check_languages(codes: Sequence[str]) -> None:
    """Raises UserError for a code that is not known, or where the library is not installed."""
    if not codes:
        return
    known = sorted({*_identifier().nb_classes} - {NO_LANGUAGE})
    for code in codes:
        if code not in known:
            raise UserError(f"clean.languages: {code} is not known; use some of {', '.join(known)}")


def foreign(parts: Sequence[Part], languages: Sequence[str]) -> Reject | None:
    """Why a sample goes: it is surely in none of these languages. None: it stays."""
    for kinds, what in (
        (("response",), "the response"),
        (("instruction", "input"), "the question"),
    ):
        text = "\n".join(part.text for part in parts if part.kind in kinds)
        language = language_of(text)
        if language in languages:
            return None
        if language is not None:
            return Reject("language", f"{what} is in {language}")
    return None


def language_of(text: str) -> str | None:
    """The ISO 639 code of a text's language; None where it is not sure, or there is none."""
    prose = _prose(text)
    if sum(map(str.isalpha, prose)) < LETTERS:
        return None
    language, probability = _identifier().classify(prose)
    return language if probability >= SURE and language != NO_LANGUAGE else None


def _prose(text: str) -> str:
    """The beginning of a text, without what looks like code or a formula."""
    lines = (line for line in FENCED.sub("\n", text).splitlines() if not CODE.search(line))
    return " ".join(lines)[:CHARACTERS]


@cache
def _identifier() -> Any:
    # A worker's machine may lack what the driver's has.
    require(
        find_spec(PACKAGE) is not None,
        f"clean.languages needs {PACKAGE} on all machines: pip install 'instructdiff-ray[clean]'",
    )
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
