from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from instructdiff_ray.config.cluster import ClusterConfig, ScoreResources
from instructdiff_ray.config.data import DataConfig, ModelConfig
from instructdiff_ray.config.run import Config
from instructdiff_ray.config.training import CalibrateConfig
from instructdiff_ray.errors import UserError
from instructdiff_ray.models.encoding import EncoderSpec
from instructdiff_ray.models.model import Model
from instructdiff_ray.models.template import Encoded
from instructdiff_ray.pool.files import source_files
from instructdiff_ray.pool.ingest import ingest
from instructdiff_ray.pool.pool import Pool
from instructdiff_ray.progress import Progress
from instructdiff_ray.sample import Part
from instructdiff_ray.scoring.spec import ScoreSpec
from instructdiff_ray.scoring.stage import score
from instructdiff_ray.scoring.stats import ScoringStats
from instructdiff_ray.storage.artifacts import Storage
from tests.engine.test_metrics import plain_score
from tests.faults import TRIED_OUT, Gate, killing, with_custom_code
from tests.pools import samples, scores_table

pytestmark = pytest.mark.usefixtures("ray_session")
QUIET = Progress(io.StringIO())


def whole(config: Config, base: Model, **others: Model) -> list[ScoreSpec]:
    """Scores by models that read whole samples."""
    encoding = EncoderSpec.of(config, base)
    return [ScoreSpec(name, model, encoding) for name, model in {"base": base, **others}.items()]


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
    return ingest(config, source_files(config.data), model, Storage(config.storage), QUIET)


@pytest.fixture(scope="module")
def other(model: Model) -> Model:
    """A second model with its own identity; its weights happen to be the first one's."""
    return replace(model, identity="other")


def test_every_sample_of_the_pool_is_scored_once_as_the_definition_says(
    config: Config, pool: Pool, model: Model
) -> None:
    stats = ScoringStats()
    scores = score(config, pool, whole(config, model), Storage(config.storage), QUIET, stats)
    table = scores_table(scores["base"])
    assert table["sample_id"].to_pylist() == list(pool.ids())
    assert stats.samples == {"base": len(pool), "calibrated": 0}
    assert stats.tokens == sum(sum(table["tokens"].to_pylist()) for table in pool.index())
    loaded, encoder = model.load("fp32"), EncoderSpec.of(config, model).encoder()
    rows = {row["sample_id"]: row for row in table.to_pylist()}
    for row in samples(pool):
        (encoded,) = encoder.encode([[Part(**part) for part in row["parts"]]])
        assert isinstance(encoded, Encoded)
        found = rows[row["sample_id"]]
        expected = plain_score(loaded, encoded.input_ids, encoded.response)
        assert (found["nll"], found["entropy"]) == pytest.approx(expected, abs=1e-4)
        assert found["response_tokens"] == row["response_tokens"] == sum(encoded.response)


@pytest.mark.slow
def test_a_scorer_refuses_a_gpu_that_torch_can_not_use_in_one_line(
    config: Config, pool: Pool, model: Model, tmp_path: Path, unusable_gpu: str
) -> None:
    # Nothing is measured beforehand where both are set.
    resources = ScoreResources(gpus_per_actor=1, models_per_actor=1)
    on_gpu = replace(config, cluster=ClusterConfig(score=resources))
    with pytest.raises(UserError, match=unusable_gpu):
        score(on_gpu, pool, whole(config, model), Storage(str(tmp_path)), QUIET, ScoringStats())


def test_two_models_share_a_pass_and_each_lacks_only_what_is_missing(
    config: Config, pool: Pool, model: Model, other: Model, tmp_path: Path
) -> None:
    storage = Storage(str(tmp_path))
    stats = ScoringStats()
    models = whole(config, model, calibrated=other)
    scores = score(config, pool, models, storage, QUIET, stats)
    assert stats.samples == {"base": len(pool), "calibrated": len(pool)}
    expected = scores_table(scores["base"])
    assert expected.equals(scores_table(scores["calibrated"]))
    # A file of one model was damaged (a bit, and not the size) before the scores were gathered.
    files = sorted(Path(tmp_path, "pieces").glob("*/snapshot-*/*.parquet"))
    lost = pq.read_table(files[0]).num_rows
    # In a column that only the gathering reads, when all seems to be scored.
    column = pq.read_metadata(files[0]).row_group(0).column(3)
    assert column.path_in_schema == "entropy"
    data = bytearray(files[0].read_bytes())
    data[column.data_page_offset + column.total_compressed_size // 2] ^= 1
    files[0].write_bytes(data)
    for manifest in Path(tmp_path, "scores").glob("*/manifest.json"):
        manifest.unlink()
    again = ScoringStats()
    rebuilt = score(config, pool, models, storage, QUIET, again)
    assert scores_table(rebuilt["base"]).equals(expected)
    assert sorted(again.samples.values()) == [0, lost]
    assert not files[0].exists()


@pytest.mark.slow
def test_one_model_a_pass_gives_the_scores_of_both_at_once_to_the_last_bit(
    config: Config, pool: Pool, model: Model, model_folder: str, tmp_path: Path
) -> None:
    # A calibrated model that is elsewhere, as one of a device's size.
    shutil.copytree(model_folder, tmp_path / "calibrated")
    calibrated = replace(model, path=str(tmp_path / "calibrated"), identity="calibrated")
    models = whole(config, model, calibrated=calibrated)
    tables = []
    for count in (2, 1):
        resources = ScoreResources(models_per_actor=count)
        one_way = replace(config, cluster=replace(config.cluster, score=resources))
        storage, stats = Storage(str(tmp_path / str(count))), ScoringStats()
        scores = score(one_way, pool, models, storage, QUIET, stats)
        tables.append({name: scores_table(table) for name, table in scores.items()})
        assert stats.samples == {"base": len(pool), "calibrated": len(pool)}
    assert tables[0] == tables[1]


@pytest.mark.slow
def test_several_actors_and_small_batches_give_the_same_scores(
    config: Config, pool: Pool, model: Model, tmp_path: Path
) -> None:
    cluster = ClusterConfig(score=ScoreResources(min_actors=2, max_actors=2, tokens_per_batch=50))
    other_way = replace(config, cluster=cluster)
    scores = scores_table(
        score(other_way, pool, whole(config, model), Storage(str(tmp_path)), QUIET, ScoringStats())[
            "base"
        ]
    )
    storage = Storage(config.storage)
    alone = score(config, pool, whole(config, model), storage, QUIET, ScoringStats())
    expected = scores_table(alone["base"])
    for name in ("nll", "entropy"):
        assert np.allclose(scores[name].to_numpy(), expected[name].to_numpy(), atol=1e-5)


def test_a_model_that_overflows_stops_the_run_in_one_line(
    config: Config, pool: Pool, model: Model, tmp_path: Path
) -> None:
    broken = model.load("fp32")
    broken.get_input_embeddings().weight.data.fill_(float("inf"))
    broken.save_pretrained(tmp_path / "broken")
    model.load_tokenizer().save_pretrained(tmp_path / "broken")
    bad = replace(model, path=str(tmp_path / "broken"), identity="broken")
    with pytest.raises(UserError, match=r"40 of 40 rows were rejected \(not_finite 40\)"):
        score(config, pool, whole(config, bad), Storage(str(tmp_path)), QUIET, ScoringStats())
    assert not list(Path(tmp_path, "scores").glob("*/manifest.json"))


DIES_ON_A_TOKEN = """
import os, signal
from transformers import {parent}

def die(module, arguments, options):
    if any({token} in row for row in options["input_ids"].tolist()):
        os.kill(os.getpid(), signal.SIGKILL)

class CustomModel({parent}):
    def __init__(self, config):
        super().__init__(config)
        self.base_model.register_forward_pre_hook(die, with_kwargs=True)
"""


def test_a_sample_that_kills_its_scorer_becomes_a_reject_and_the_others_are_scored(
    config: Config, pool: Pool, model: Model, tmp_path: Path
) -> None:
    storage = Storage(config.storage)
    undisturbed = score(config, pool, whole(config, model), storage, QUIET, ScoringStats())
    expected = scores_table(undisturbed["base"])
    # A token that few samples hold: the model's own code dies of it.
    encoder = EncoderSpec.of(config, model).encoder()
    holders: dict[int, set[str]] = {}
    for row in samples(pool):
        (encoded,) = encoder.encode([[Part(**part) for part in row["parts"]]])
        assert isinstance(encoded, Encoded)
        for token in encoded.input_ids:
            holders.setdefault(token, set()).add(row["sample_id"])
    token, killers = min(holders.items(), key=lambda item: (len(item[1]), item[0]))
    code = DIES_ON_A_TOKEN.format(parent=type(model.load("fp32")).__name__, token=token)
    dying = with_custom_code(model, tmp_path / "dying", code)
    stats = ScoringStats()
    scores = score(config, pool, whole(config, dying), Storage(str(tmp_path)), QUIET, stats)
    found = {row["sample_id"]: row for row in scores_table(scores["base"]).to_pylist()}
    assert stats.samples["base"] == len(pool) - len(killers)
    for row in expected.to_pylist():
        if row["sample_id"] in killers:
            row = {**row, "nll": None, "entropy": None, "reason": "kills_scorer"}
            row["detail"] = "the scorer died 2 times on this sample alone"
        assert found.pop(row["sample_id"]) == pytest.approx(row, abs=1e-5)
    assert not found


DEVICE_FAILS_ONCE = """
import os, torch
from transformers import {parent}

def fail(module, arguments, options):
    # Not where the scorer tries the model out, which takes four passes.
    module.passed = getattr(module, "passed", 0) + 1
    if module.passed > 6 and not os.path.exists({failed!r}):
        open({failed!r}, "w").close()
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

class CustomModel({parent}):
    def __init__(self, config):
        super().__init__(config)
        self.base_model.register_forward_pre_hook(fail, with_kwargs=True)
"""


def test_a_device_that_fails_costs_its_scorer_and_no_sample(
    config: Config, pool: Pool, model: Model, tmp_path: Path
) -> None:
    storage = Storage(config.storage)
    undisturbed = score(config, pool, whole(config, model), storage, QUIET, ScoringStats())
    failed = tmp_path / "failed"
    code = DEVICE_FAILS_ONCE.format(parent=type(model.load("fp32")).__name__, failed=str(failed))
    failing = with_custom_code(model, tmp_path / "failing", code)
    small = replace(config.cluster, score=ScoreResources(tokens_per_batch=64))
    stats, storage = ScoringStats(), Storage(str(tmp_path))
    specs = whole(config, failing)
    scores = score(replace(config, cluster=small), pool, specs, storage, QUIET, stats)
    assert failed.exists()
    assert stats.samples["base"] == len(pool)
    assert [*stats.forward_passes] == ["base"]
    assert "packed samples, attention sdpa, head in" in stats.forward_passes["base"][0]
    found, expected = scores_table(scores["base"]), scores_table(undisturbed["base"])
    for name in ("nll", "entropy"):
        assert np.allclose(found[name].to_numpy(), expected[name].to_numpy(), atol=1e-5)


@pytest.mark.slow
def test_a_scorer_that_is_killed_is_replaced_and_its_rows_are_scored_again(
    config: Config, pool: Pool, model: Model, tmp_path: Path
) -> None:
    storage = Storage(config.storage)
    undisturbed = score(config, pool, whole(config, model), storage, QUIET, ScoringStats())
    expected = scores_table(undisturbed["base"])
    gate, stats = Gate(tmp_path / "gate"), ScoringStats()
    gated = gate.model(model, tmp_path / "model")
    # First on the block, and then on a sample of it alone, which is no reason to give that one up.
    with killing(gate, after=TRIED_OUT, times=2):
        scores = score(config, pool, whole(config, gated), Storage(str(tmp_path)), QUIET, stats)
    assert stats.samples["base"] == len(pool)
    found = scores_table(scores["base"])
    for name in ("nll", "entropy"):
        assert np.allclose(found[name].to_numpy(), expected[name].to_numpy(), atol=1e-5)
