"""What a pool can't give of a mixture is refused by a line that says what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from instructdiff_ray.config.data import DataConfig
from instructdiff_ray.config.run import Config
from instructdiff_ray.config.selection import SelectConfig
from instructdiff_ray.config.training import CalibrateConfig
from instructdiff_ray.errors import UserError
from instructdiff_ray.selection.budgets import Size
from instructdiff_ray.selection.mixture import check_mixture, mixture_notes, pool_sizes
from tests.selection.test_select import make_pool

SIZES = {"code": Size(1000, 50_000), "law": Size(200, 30_000), "math": Size(800, 20_000)}


def config_of(mixture: dict[str, float], **settings: Any) -> Config:
    names = {"rounds", "strategy", "domains", "calibrate"}
    whole = {name: settings.pop(name) for name in names & settings.keys()}
    select = SelectConfig(mixture=mixture, **settings)
    return Config(data=DataConfig(domain_column="domain"), select=select, **whole)


@pytest.mark.parametrize(
    ("mixture", "settings", "line"),
    [
        ({"physics": 0.1}, {}, "names physics, .* its domains are code, law, math"),
        ({"code": 0.3, "law": 0.3, "math": 0.3}, {}, r"names all domains .* sum to 0\.9; make"),
        # 2,000 · 0.2 · 0.5 = 200 of 200 − 2 · 20
        ({"law": 0.5}, {"ratio": 0.2}, r"200 samples of law, .* filter leaves 160; .* 0\.16$"),
        ({"law": 0.5}, {"ratio": 0.3, "strategy": "random"}, r"300 .* are 200; .* 0\.2$"),
        ({"law": 1.0}, {"ratio": 0.5, "budget": "tokens"}, r"50,000 tokens .* 30,000; .* 0\.3$"),
        # Those that are not named may be too small for what is left to them.
        ({"law": 0.01}, {"ratio": 0.9, "reject_ratio": 0.02}, "of code, and the filter leaves 960"),
        (
            {"law": 0.5, "math": 0.5},
            {"rounds": 2, "calibrate": CalibrateConfig(per_domain=True)},
            "selects nothing of code, on which calibrate.per_domain",
        ),
    ],
)  # fmt: skip
def test_what_the_pool_cannot_give_is_refused(
    mixture: dict[str, float], settings: dict[str, Any], line: str
) -> None:
    with pytest.raises(UserError, match=line) as refusal:
        check_mixture(config_of(mixture, **settings), SIZES)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("mixture", "settings"),
    [
        ({"law": 0.5}, {"ratio": 0.16}),
        ({"law": 0.5}, {"ratio": 0.2, "reject_ratio": 0.0}),
        ({"law": 0.5}, {"ratio": 0.2, "domains": {"law": {"select": {"reject_ratio": 0.0}}}}),
        ({"law": 0.5}, {"ratio": 0.2, "strategy": "random"}),
        ({"law": 0.5}, {"ratio": 0.2, "budget": "tokens"}),
        ({"code": 0.5, "law": 0.1, "math": 0.4}, {}),
        ({"law": 0.5, "math": 0.5}, {"rounds": 2}),
        ({"law": 0.5}, {"rounds": 2, "calibrate": CalibrateConfig(per_domain=True)}),
    ],
)
def test_what_it_can_give_is_not(mixture: dict[str, float], settings: dict[str, Any]) -> None:
    check_mixture(config_of(mixture, **settings), SIZES)


def test_what_is_left_out_and_what_is_not_used_is_said() -> None:
    domains = {"code": {"select": {"ratio": 0.2}}, "physics": {"select": {"ratio": 0.3}}}
    (unused,) = mixture_notes(config_of({"math": 0.3}, domains=domains), SIZES)
    assert unused.startswith("select.ratio of code is not used")
    (nothing,) = mixture_notes(config_of({"math": 0.3, "law": 0.7}), SIZES)
    assert nothing.startswith("nothing is selected of code")
    assert not [*mixture_notes(config_of({"math": 0.3}), SIZES)]


def test_the_sizes_are_those_of_the_pool(tmp_path: Path) -> None:
    pool = make_pool(tmp_path, ["math", "code", "math"] * 10, [3] * 15 + [5] * 15)
    assert pool_sizes(pool) == {"code": Size(10, 40), "math": Size(20, 80)}
    assert [*pool_sizes(pool)] == [*pool.domains()]
