"""Which scores samples lack, and which are computed in one pass over the pool."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest

from instructdiff_ray.config.data import DataConfig, ModelConfig
from instructdiff_ray.config.run import Config
from instructdiff_ray.config.training import CalibrateConfig
from instructdiff_ray.models.encoding import EncoderSpec
from instructdiff_ray.models.model import Model
from instructdiff_ray.pool.files import source_files
from instructdiff_ray.pool.ingest import ingest
from instructdiff_ray.pool.pool import Pool
from instructdiff_ray.progress import Progress
from instructdiff_ray.scoring.plan import by_encoding, plan_passes
from instructdiff_ray.scoring.spec import ScoreSpec
from instructdiff_ray.scoring.stage import score
from instructdiff_ray.scoring.stats import ScoringStats
from instructdiff_ray.scoring.store import score_stores
from instructdiff_ray.selection.strategies import repeat_scores
from instructdiff_ray.storage.artifacts import Storage
from tests.pools import scores_table

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
    return ingest(config, source_files(config.data), model, Storage(config.storage), QUIET)


def names_of(pool: Pool, specs: list[ScoreSpec], most_models: int = 2) -> list[list[list[str]]]:
    """Names of scores by encoding by pass."""
    passes = plan_passes(pool, score_stores(specs, pool, "fp32", Storage("/nowhere")), most_models)
    assert all(part.prefixes is None and part.tokens > 0 for part in passes)
    return [
        [[target.name for target in group] for group in by_encoding(part.targets).values()]
        for part in passes
    ]


def test_encodings_whose_models_another_ones_scorers_hold_go_along(
    config: Config, pool: Pool, model: Model
) -> None:
    whole = EncoderSpec.of(config, model)
    calibrated, large = replace(model, identity="calibrated"), replace(model, identity="large")
    base, alone = ScoreSpec("base", model, whole), ScoreSpec("alone", model, whole.alone())
    specs = [
        alone,
        base,
        ScoreSpec("rating-0-0", model, EncoderSpec.for_rating(model, 0)),
        ScoreSpec("rating-0-1", model, EncoderSpec.for_rating(model, 1)),
        ScoreSpec("rating-1-0", large, EncoderSpec.for_rating(large, 0)),
        ScoreSpec("calibrated", calibrated, whole),
    ]
    assert names_of(pool, specs) == [
        [["base", "calibrated"], ["alone"], ["rating-0-0"], ["rating-0-1"]],
        [["rating-1-0"]],
    ]
    # Where a scorer holds one, each has its own pass, and its other encodings go along.
    elsewhere = replace(calibrated, path="/elsewhere")
    specs = [alone, base, ScoreSpec("calibrated", elsewhere, whole)]
    assert names_of(pool, specs, most_models=1) == [[["alone"], ["base"]], [["calibrated"]]]
    by_domain = ScoreSpec("calibrated", {"general": calibrated, "other": large}, whole)
    # No sample is of the other domain.
    assert names_of(pool, [base, by_domain]) == [[["base", "calibrated"]]]
    # Where no scorer of a domain's own has the base model, it goes over all domains at once.
    assert names_of(pool, [by_domain, alone]) == [[["calibrated"]], [["alone"]]]


def test_a_sample_that_one_encoding_can_not_show_is_scored_in_the_others(
    config: Config, pool: Pool, model: Model, tmp_path: Path
) -> None:
    whole, storage, stats = EncoderSpec.of(config, model), Storage(str(tmp_path)), ScoringStats()
    specs = [ScoreSpec("base", model, whole), ScoreSpec("alone", model, whole.alone())]
    scores = score(config, pool, specs, storage, QUIET, stats)
    assert stats.samples == {"base": ROWS, "calibrated": 0, "alone": ROWS - 1}
    tables = {name: scores_table(table) for name, table in scores.items()}
    assert tables["base"]["nll"].null_count == 0
    assert tables["alone"]["nll"].null_count == 1
    (row,) = (row for row in tables["alone"].to_pylist() if row["reason"])
    assert row["nll"] is row["entropy"] is None and row["detail"]
    # What was rejected is done with, and nothing is scored again.
    assert not plan_passes(pool, score_stores(specs, pool, "fp32", storage), 2)


def test_a_scorer_holds_two_sets_of_weights_and_any_number_of_adapters(
    config: Config, pool: Pool, model: Model
) -> None:
    whole = EncoderSpec.of(config, model)

    def specs(models: list[Model]) -> list[ScoreSpec]:
        named = [ScoreSpec(repeat_scores(r), each, whole) for r, each in enumerate(models)]
        return [ScoreSpec("base", model, whole), *named]

    trained = [replace(model, path=f"/models/{r}", identity=str(r)) for r in range(4)]
    ending = ScoreSpec("ending", trained[0], whole.ending())
    assert names_of(pool, [*specs(trained), ending]) == [
        [["base", "calibrated"], ["ending"]],
        [["calibrated-1", "calibrated-2"]],
        [["calibrated-3"]],
    ]
    adapters = [replace(model, adapter=f"/models/{r}", identity=str(r)) for r in range(4)]
    assert names_of(pool, specs(adapters)) == [
        [["base", "calibrated", "calibrated-1", "calibrated-2", "calibrated-3"]]
    ]
