"""How much of a pool is scored at once."""

from __future__ import annotations

import pytest

from instructdiff_ray.config.data import TemplateConfig
from instructdiff_ray.models.encoding import EncoderSpec
from instructdiff_ray.models.model import Model
from instructdiff_ray.scoring.dataflow import ROWS_PER_BATCH, rows_per_batch
from instructdiff_ray.scoring.plan import ScorePass, ScoreTarget
from instructdiff_ray.storage.filesystem import Folder


@pytest.mark.parametrize(
    ("parameters", "samples", "gpus", "actors", "rows"),
    [
        (5e8, 10**7, 1, 8, 10_000),  # 20 s of two models' 600 tokens a sample
        (7e9, 10**7, 1, 8, ROWS_PER_BATCH),
        (7e10, 10**7, 4, 8, ROWS_PER_BATCH),
        (1e7, 10**7, 1, 8, 16_384),
        (5e8, 160_000, 1, 8, 5_000),  # four blocks each
        (5e8, 2000, 1, 8, ROWS_PER_BATCH),
        (5e8, 10**7, 0, 8, ROWS_PER_BATCH),
    ],
)
def test_a_block_is_some_seconds_of_a_gpus_work(
    parameters: float,
    samples: int,
    gpus: float,
    actors: int,
    rows: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Model, "parameters", lambda self: int(parameters))
    model = Model("", None, False, "", None)
    encoding = EncoderSpec(model, TemplateConfig(), 1, False)
    targets = [ScoreTarget(name, model, encoding, Folder("")) for name in ("base", "calibrated")]
    assert rows_per_batch(ScorePass(targets, None, 600 * samples, samples), gpus, actors) == rows
