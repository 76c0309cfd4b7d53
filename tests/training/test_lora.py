"""Calibration by a LoRA adapter: one copy of the base weights gives both scores."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from peft import PeftModel

from instructdiff_ray.config.data import DataConfig, ModelConfig, TemplateConfig
from instructdiff_ray.config.run import Config
from instructdiff_ray.config.training import CalibrateConfig
from instructdiff_ray.engine.metrics import NO_ADAPTER
from instructdiff_ray.models.encoding import EncoderSpec
from instructdiff_ray.models.model import Model
from instructdiff_ray.models.template import Encoded
from instructdiff_ray.pipeline import ingest_pool
from instructdiff_ray.sample import Part
from instructdiff_ray.scoring.actor import Scorer
from instructdiff_ray.scoring.blocks import encoded_columns
from instructdiff_ray.scoring.crash_guard import start_crash_guard
from instructdiff_ray.scoring.plan import ScoreTarget
from instructdiff_ray.storage.filesystem import Folder
from instructdiff_ray.training.adapter import with_adapter
from tests.engine.test_metrics import plain_score
from tests.pools import samples
from tests.test_pipeline import run_method

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.mark.slow
def test_an_adapter_is_trained_and_scores_beside_the_base_model(
    model_folder: str, model: Model, tmp_path: Path
) -> None:
    rows = [{"question": f"Double {n}.", "answer": f"It is {2 * n}."} for n in range(40)]
    (tmp_path / "pool.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = Config(
        data=DataConfig(path=str(tmp_path / "pool.jsonl")),
        model=ModelConfig(base=model_folder),
        calibrate=CalibrateConfig(
            ratio=0.5, epochs=4, learning_rate=1e-2, global_batch_size=4, lora_rank=2
        ),
        storage=str(tmp_path / "storage"),
        run_dir=str(tmp_path / "out"),
    )
    run = run_method(config)
    folder = Path(run.summary["calibrated_model"])
    weights = (folder / "adapter_model.safetensors").stat().st_size
    whole = (Path(model_folder) / "model.safetensors").stat().st_size
    assert not (folder / "model.safetensors").exists() and weights < whole / 4
    ranking = {
        r["sample_id"]: r for r in pq.read_table(tmp_path / "out/ranking.parquet").to_pylist()
    }
    base = model.load("fp32")
    plain = {"base": base, "calibrated": PeftModel.from_pretrained(model.load("fp32"), str(folder))}
    encoder, pool = EncoderSpec.of(config, model).encoder(), ingest_pool(run.context, build=False)
    for row in samples(pool)[:5]:
        (encoded,) = encoder.encode([[Part(**part) for part in row["parts"]]])
        assert isinstance(encoded, Encoded)
        found = ranking[row["sample_id"]]
        for name, loaded in plain.items():
            nll, entropy = plain_score(loaded, encoded.input_ids, encoded.response)
            assert found[f"{name}_nll"] == pytest.approx(nll, abs=1e-4)
            assert found[f"{name}_entropy"] == pytest.approx(entropy, abs=1e-4)
    assert max(abs(row["delta_nll"]) for row in ranking.values()) > 0.1


def test_base_and_calibrated_share_their_weights(model: Model, tmp_path: Path) -> None:
    adapted = with_adapter(model.load("fp32"), CalibrateConfig(lora_rank=2))
    adapted.save_pretrained(tmp_path)
    calibrated = replace(model, adapter=str(tmp_path), identity="calibrated")
    encoding = EncoderSpec(model, TemplateConfig(), 64, truncate=False)
    nowhere = Folder(str(tmp_path))
    targets = [
        ScoreTarget("base", model, encoding, nowhere),
        ScoreTarget("calibrated", calibrated, encoding, nowhere),
    ]
    threads = torch.get_num_threads()
    scorer = Scorer(targets, "fp32", 100, 1, 0, start_crash_guard())
    torch.set_num_threads(threads)
    first, second = scorer.scorers[0].values()
    assert first.model is second.model and (first.adapter, second.adapter) == (
        NO_ADAPTER,
        "calibrated",
    )
    tokens = Encoded([5, 6, 7], [False, True, True], [False] * 3, False)
    block = pa.table({"sample_id": ["0"], **encoded_columns(0, [tokens])})
    scores = scorer(block)
    # A new adapter adds nothing yet.
    assert scores["base_nll"].to_pylist() == pytest.approx(scores["calibrated_nll"].to_pylist())


def test_several_adapters_over_one_copy_score_as_each_does_alone(
    model: Model, tmp_path: Path
) -> None:
    adapted = []
    for number in range(3):
        torch.manual_seed(number)
        wrapped = with_adapter(model.load("fp32"), CalibrateConfig(lora_rank=2))
        for name, weights in wrapped.named_parameters():
            if "lora_B" in name:  # zeros, as they are made: no adapter would change a score
                torch.nn.init.normal_(weights, std=0.2)
        wrapped.save_pretrained(tmp_path / str(number))
        folder = str(tmp_path / str(number))
        adapted.append(replace(model, adapter=folder, identity=f"{number}/weights"))
    encoding = EncoderSpec(model, TemplateConfig(), 64, truncate=False)
    # The base model stands between them: a scorer leaves no adapter on for the next.
    targets = [
        ScoreTarget(name, each, encoding, Folder(str(tmp_path)))
        for name, each in zip("abcd", [*adapted[:2], model, adapted[2]], strict=True)
    ]
    threads = torch.get_num_threads()
    scorer = Scorer(targets, "fp32", 100, 1, 0, start_crash_guard())
    torch.set_num_threads(threads)
    assert len({id(each.model) for each in scorer.scorers[0].values()}) == 1
    tokens = Encoded([5, 6, 7, 8], [False, True, True, True], [False] * 4, False)
    block = pa.table({"sample_id": ["0"], **encoded_columns(0, [tokens])})
    scores, again = scorer(block), scorer(block)
    alone = [PeftModel.from_pretrained(model.load("fp32"), each.adapter) for each in adapted]
    merged = [each.merge_and_unload() for each in alone]
    found = []
    for name, plain in zip("abcd", [*merged[:2], model.load("fp32"), merged[2]], strict=True):
        nll, entropy = plain_score(plain, tokens.input_ids, tokens.response)
        for table in (scores, again):
            assert table[f"{name}_nll"].to_pylist() == pytest.approx([nll], abs=1e-4)
            assert table[f"{name}_entropy"].to_pylist() == pytest.approx([entropy], abs=1e-4)
        found.append(nll)
    assert min(abs(a - b) for a, b in combinations(found, 2)) > 1e-3
