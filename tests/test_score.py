from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from instructdiff_ray.config import (
    CalibrateConfig,
    ClusterConfig,
    Config,
    DataConfig,
    ModelConfig,
    ScoreResources,
)
from instructdiff_ray.errors import UserError
from instructdiff_ray.ingest import ingest
from instructdiff_ray.models import DTYPES, Model
from instructdiff_ray.pool import Pool
from instructdiff_ray.progress import Progress
from instructdiff_ray.rendering import Rendering
from instructdiff_ray.samples import Part
from instructdiff_ray.score import Work, finished_scores, score
from instructdiff_ray.storage import Storage
from instructdiff_ray.template import Encoded
from tests.test_scoring import plain_score

pytestmark = pytest.mark.usefixtures("ray_session")
QUIET = Progress(io.StringIO())


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, model_folder: str) -> Config:
    folder = tmp_path_factory.mktemp("score")
    words = [
        "the",
        "quick",
        "brown",
        "fox",
        "jumps",
        "over",
        "a",
        "lazy",
        "dog",
        "and",
        "then",
        "sleeps",
    ]
    rows = [
        {"question": f"Question {n}?", "answer": " ".join(words[n % 7 : n % 7 + 2 + n % 5])}
        for n in range(40)
    ]
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


@pytest.fixture(scope="module")
def other(model: Model) -> Model:
    """A second model with its own identity; its weights happen to be the first one's."""
    return replace(model, identity="other")


def test_every_sample_of_the_pool_is_scored_once_as_the_definition_says(
    config: Config, pool: Pool, model: Model
) -> None:
    work = Work()
    table = score(config, pool, {"base": model}, Storage(config.storage), QUIET, work)["base"]
    assert table["sample_id"].to_pylist() == pool.index()["sample_id"].to_pylist()
    assert work.samples == {"base": len(pool), "calibrated": 0}
    assert work.tokens == sum(pool.index()["tokens"].to_pylist())
    loaded, encoder = model.load(DTYPES["fp32"]), Rendering.of(config, model).encoder()
    scores = {row["sample_id"]: row for row in table.to_pylist()}
    for name in pool.parts:
        for row in pool.folder.read_table(name).to_pylist():
            (encoded,) = encoder.encode([[Part(**part) for part in row["parts"]]])
            assert isinstance(encoded, Encoded)
            found = scores[row["sample_id"]]
            expected = plain_score(loaded, encoded.input_ids, encoded.response)
            assert (found["nll"], found["entropy"]) == pytest.approx(expected, abs=1e-4)
            assert found["response_tokens"] == row["response_tokens"] == sum(encoded.response)


def test_two_models_share_a_pass_and_each_lacks_only_what_is_missing(
    config: Config, pool: Pool, model: Model, other: Model, tmp_path: Path
) -> None:
    storage = Storage(str(tmp_path))
    work = Work()
    models = {"base": model, "calibrated": other}
    scores = score(config, pool, models, storage, QUIET, work)
    assert work.samples == {"base": len(pool), "calibrated": len(pool)}
    assert (
        scores["base"]
        .drop_columns("sample_id")
        .equals(scores["calibrated"].drop_columns("sample_id"))
    )
    # A crash lost one piece of one model, and both artifacts were not gathered yet.
    pieces = sorted(Path(tmp_path, "pieces").glob("*/*.parquet"))
    lost = pq.read_table(pieces[0]).num_rows
    pieces[0].unlink()
    for manifest in Path(tmp_path, "scores").glob("*/manifest.json"):
        manifest.unlink()
    again = Work()
    assert score(config, pool, models, storage, QUIET, again)["base"].equals(scores["base"])
    assert sorted(again.samples.values()) == [0, lost]


def test_several_actors_and_small_batches_give_the_same_scores(
    config: Config, pool: Pool, model: Model, tmp_path: Path
) -> None:
    cluster = ClusterConfig(score=ScoreResources(min_actors=2, max_actors=2, tokens_per_batch=50))
    other_way = replace(config, cluster=cluster)
    scores = score(other_way, pool, {"base": model}, Storage(str(tmp_path)), QUIET, Work())["base"]
    expected = finished_scores(config, pool, {"base": model}, Storage(config.storage))["base"]
    for name in ("nll", "entropy"):
        assert np.allclose(scores[name].to_numpy(), expected[name].to_numpy(), atol=1e-5)


def test_a_model_that_overflows_ends_in_one_line_that_names_a_sample(
    config: Config, pool: Pool, model: Model, tmp_path: Path
) -> None:
    broken = model.load(DTYPES["fp32"])
    broken.get_input_embeddings().weight.data.fill_(float("inf"))
    broken.save_pretrained(tmp_path / "broken")
    model.load_tokenizer().save_pretrained(tmp_path / "broken")
    bad = replace(model, path=str(tmp_path / "broken"), identity="broken")
    with pytest.raises(
        UserError, match=r"base_nll is not finite for \d+ samples.*first [0-9a-f]{32}"
    ):
        score(config, pool, {"base": bad}, Storage(str(tmp_path)), QUIET, Work())
    assert not list(Path(tmp_path, "scores").glob("*/manifest.json"))
