"""Which samples each role lacks, and which roles go over the pool together."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest

from instructdiff_ray.config.data import DataConfig, ModelConfig
from instructdiff_ray.config.run import Config
from instructdiff_ray.config.training import CalibrateConfig
from instructdiff_ray.models.encoding import Rendering
from instructdiff_ray.models.model import Model
from instructdiff_ray.pool.ingest import ingest
from instructdiff_ray.pool.pool import Pool
from instructdiff_ray.progress import Progress
from instructdiff_ray.scoring.forwards import Forward, find_places
from instructdiff_ray.scoring.plan import all_passes
from instructdiff_ray.scoring.stage import Work, score
from instructdiff_ray.storage.artifacts import Storage

pytestmark = pytest.mark.usefixtures("ray_session")
QUIET = Progress(io.StringIO())
ROWS = 12


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, model_folder: str) -> Config:
    folder = tmp_path_factory.mktemp("passes")
    # The first response is one token, which can't be scored without a prompt before it.
    rows = [{"question": f"What is {n}?", "answer": "a" + " long" * n} for n in range(ROWS)]
    (folder / "pool.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return Config(
        data=DataConfig(path=str(folder / "pool.jsonl")),
        model=ModelConfig(base=model_folder),
        calibrate=CalibrateConfig(max_length=64),
        storage=str(folder / "storage"),
    )


@pytest.fixture(scope="module")
def pool(config: Config, model: Model, ray_session: None) -> Pool:
    return ingest(config, model, Storage(config.storage), QUIET)


def roles_of(config: Config, pool: Pool, forwards: dict[str, Forward]) -> list[list[list[str]]]:
    """Roles by view by pass."""
    passes = all_passes(pool, forwards, find_places(config, pool, forwards, Storage("/nowhere")))
    assert all(one.prefixes is None and one.tokens > 0 for one in passes)
    return [[list(view.models) for view in one.views] for one in passes]


def test_views_whose_models_another_ones_scorers_hold_go_along(
    config: Config, pool: Pool, model: Model
) -> None:
    rendering = Rendering.of(config, model)
    calibrated, large = replace(model, identity="calibrated"), replace(model, identity="large")
    forwards = {
        "alone": Forward(model, rendering.alone()),
        "base": Forward(model, rendering),
        "rating-0-0": Forward(model, Rendering.for_rating(model, 0)),
        "rating-0-1": Forward(model, Rendering.for_rating(model, 1)),
        "rating-1-0": Forward(large, Rendering.for_rating(large, 0)),
        "calibrated": Forward(calibrated, rendering),
    }
    assert roles_of(config, pool, forwards) == [
        [["base", "calibrated"], ["alone"], ["rating-0-0"], ["rating-0-1"]],
        [["rating-1-0"]],
    ]
    own = Forward({"general": calibrated, "other": large}, rendering)
    by_domain = {"base": forwards["base"], "calibrated": own}
    assert roles_of(config, pool, by_domain) == [[["base", "calibrated"]]]  # none is of the other
    # Where no scorer of a domain's own has the base model, it goes over all domains at once.
    apart = {"calibrated": own, "alone": forwards["alone"]}
    assert roles_of(config, pool, apart) == [[["calibrated"]], [["alone"]]]


def test_a_sample_that_one_view_can_not_show_is_scored_in_the_others(
    config: Config, pool: Pool, model: Model, tmp_path: Path
) -> None:
    rendering, storage, work = Rendering.of(config, model), Storage(str(tmp_path)), Work()
    forwards = {"base": Forward(model, rendering), "alone": Forward(model, rendering.alone())}
    scores = score(config, pool, forwards, storage, QUIET, work)
    assert work.samples == {"base": ROWS, "calibrated": 0, "alone": ROWS - 1}
    tables = {role: one.folder.read_table("scores.parquet") for role, one in scores.items()}
    assert tables["base"]["nll"].null_count == 0
    assert tables["alone"]["nll"].null_count == 1
    (row,) = (row for row in tables["alone"].to_pylist() if row["reason"])
    assert row["nll"] is row["entropy"] is None and row["detail"]
    # What was rejected is settled, and nothing is scored again.
    assert not all_passes(pool, forwards, find_places(config, pool, forwards, storage))
