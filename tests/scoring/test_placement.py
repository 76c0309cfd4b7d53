"""How many models a scorer holds, and on how many GPUs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructdiff_ray.config.cluster import ClusterConfig, ScoreResources
from instructdiff_ray.engine.memory import GIB, ScoringMemory
from instructdiff_ray.errors import UserError
from instructdiff_ray.models.model import Model
from instructdiff_ray.scoring.placement import Placement, choose, place

OPEN = ScoreResources(gpus_per_actor=None)
# About those of 0.5, 8, 32 and 70 billion parameters in bf16.
SIZES = {
    billions: ScoringMemory(2 * billions * GIB, 0.5 * GIB, 1 * GIB) for billions in (0.5, 8, 32, 70)
}


def chosen(
    billions: float,
    gpu_gib: float,
    resources: ScoreResources = OPEN,
    wanted: int = 2,
    gpus: int = 8,
) -> tuple[int, float]:
    placement = choose(resources, wanted, SIZES[billions], gpu_gib * GIB, gpus)
    return placement.models, placement.gpus


def test_one_model_a_pass_comes_before_layers_on_several_gpus() -> None:
    assert chosen(0.5, 21) == (2, 1)
    assert chosen(8, 72) == (2, 1)
    assert chosen(8, 21) == (1, 1)
    assert chosen(32, 72) == (1, 1)
    assert chosen(32, 43) == (1, 2)
    assert chosen(70, 70) == (1, 4)  # two would hold the weights, and no layer more
    assert chosen(70, 70, wanted=1) == (1, 4)


def test_what_is_set_is_kept_and_said_only_where_it_is_worth_a_line() -> None:
    assert chosen(8, 72, ScoreResources(gpus_per_actor=None, models_per_actor=1)) == (1, 1)
    assert chosen(8, 72, ScoreResources(gpus_per_actor=0.5)) == (2, 0.5)
    assert chosen(8, 72, ScoreResources(gpus_per_actor=0.25)) == (1, 0.25)
    assert chosen(0.5, 72, ScoreResources(gpus_per_actor=4)) == (2, 4)
    assert choose(OPEN, 2, SIZES[0.5], 21 * GIB, 8).note is None
    one = choose(OPEN, 2, SIZES[8], 21 * GIB, 8).note
    assert one == "one model a pass: 2 take 32.0 GiB, and 21.0 of a GPU's memory can be used"
    split = choose(OPEN, 2, SIZES[70], 70 * GIB, 8).note
    assert split and split.startswith("each model is split over 4 GPUs: its weights take 140.0 GiB")


@pytest.mark.parametrize(
    ("billions", "gpu", "resources", "gpus", "advice"),
    [
        (70, 70, ScoreResources(gpus_per_actor=1), 8, "set cluster.score.gpus_per_actor=4"),
        (70, 70, OPEN, 2, "take machines with 4 such GPUs"),
        (70, 4, OPEN, 8, "take larger GPUs"),
        (8, 21, ScoreResources(gpus_per_actor=0.5), 8, "set cluster.score.gpus_per_actor=1"),
    ],
)
def test_what_fits_nowhere_is_refused_in_a_line_that_says_what_would(
    billions: float, gpu: float, resources: ScoreResources, gpus: int, advice: str
) -> None:
    with pytest.raises(UserError, match=advice) as refusal:
        chosen(billions, gpu, resources, gpus=gpus)
    assert "\n" not in str(refusal.value)


@given(
    st.floats(1, 500), st.floats(0.1, 5), st.floats(0.1, 20), st.floats(4, 200), st.integers(1, 8)
)
def test_what_is_chosen_fits(
    weights: float, piece: float, forward: float, device: float, gpus: int
) -> None:
    needed = ScoringMemory(weights * GIB, min(piece, weights) * GIB, forward * GIB)
    try:
        placement = choose(OPEN, 2, needed, device * GIB, gpus)
    except UserError:
        assert needed.on_each(1, 2 ** (gpus.bit_length() - 1)) > device * GIB
    else:
        assert needed.on_each(placement.models, int(placement.gpus)) <= device * GIB
        assert placement.gpus <= gpus


def test_a_gpu_that_torch_can_not_use_is_refused_in_one_line(
    model: Model, unusable_gpu: str
) -> None:
    with pytest.raises(UserError, match=unusable_gpu):
        place(ClusterConfig(score=OPEN), [model], 64)


def test_on_processors_nothing_is_looked_at(model: Model) -> None:
    assert place(ClusterConfig(), [model], 64) == Placement(1, 0)
    one = ClusterConfig(score=ScoreResources(gpus_per_actor=4, models_per_actor=1))
    assert place(one, [model], 64) == Placement(1, 4)
