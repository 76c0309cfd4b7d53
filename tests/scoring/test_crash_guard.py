"""Which samples kill a scorer, as its restarts tell: each of them found, at a bounded price."""

from __future__ import annotations

import pytest

from instructdiff_ray.errors import UserError
from instructdiff_ray.scoring.crash_guard import (
    MAX_DEATHS,
    MAX_IN_SUCCESSION,
    MAX_LOADS,
    CrashGuardClient,
    start_crash_guard,
)

pytestmark = pytest.mark.usefixtures("ray_session")


def score_until_done(samples: list[str], killers: set[str]) -> tuple[list[str], int]:
    """What Ray and a scorer do with a block that has killed one: (quarantined, deaths)."""
    scorer, deaths = CrashGuardClient(start_crash_guard()), 0
    while True:
        scorer.begin_load()
        scorer.end_load()
        scorer.begin("block")
        quarantined, died = [], False
        for sample in samples:
            if scorer.quarantined(sample):
                quarantined.append(sample)
            elif sample in killers:
                deaths, died = deaths + 1, True
                break
            else:
                scorer.end(sample, scored=True)
        if not died:
            return quarantined, deaths


@pytest.mark.parametrize("killers", [{"3"}, {"0", "1", "2"}, {"2", "9", "17", "18", "19"}])
def test_every_killer_is_found_at_the_price_of_a_few_deaths_each(killers: set[str]) -> None:
    samples = [str(number) for number in range(20)]
    quarantined, deaths = score_until_done(samples, killers)
    assert set(quarantined) == killers
    assert deaths == MAX_DEATHS * len(killers)


def test_a_machine_on_which_every_sample_dies_ends_the_run() -> None:
    samples = [str(number) for number in range(50)]
    with pytest.raises(UserError, match=f"died on {MAX_IN_SUCCESSION} samples in succession"):
        score_until_done(samples, set(samples))


def test_an_actor_that_dies_whenever_it_loads_ends_the_run() -> None:
    scorer = CrashGuardClient(start_crash_guard())
    for _ in range(MAX_LOADS):
        scorer.begin_load()
    with pytest.raises(UserError, match="died 3 times while it loaded"):
        scorer.begin_load()
