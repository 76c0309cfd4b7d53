from __future__ import annotations

import pytest

from instructdiff_ray.results.labels import written


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.0625, "0.062"),
        (-1234.5, "-1234.500"),
        (9999.9, "9999.900"),
        (48213.0, "48213"),
        (-1.5e7, "-15000000"),
        (-(2.0**64), "-1.84e+19"),
    ],
)
def test_values_of_any_size_are_written_in_a_column(value: float | None, text: str) -> None:
    assert written(value) == text and len(text) < 10
