"""The evaluation: its arithmetic, and once as a whole."""

from __future__ import annotations

import io
import json
from pathlib import Path
from statistics import fmean

import pytest
from matplotlib.image import imread

from instructdiff_ray.config.data import DataConfig, ModelConfig
from instructdiff_ray.config.run import Config
from instructdiff_ray.config.selection import SelectConfig
from instructdiff_ray.config.training import CalibrateConfig, EvaluateConfig
from instructdiff_ray.context import prepare
from instructdiff_ray.evaluation.evaluate import Trained, as_many, as_rows, evaluate, plot, write
from instructdiff_ray.pipeline import ingest_pool
from instructdiff_ray.progress import Progress


def test_the_table_has_mean_and_spread_over_seeds() -> None:
    found = [Trained("untrained", 0, 0, 0, {"all": 2.0})]
    found += [Trained("selection", seed, 10, 2000, {"all": 1.0 + seed}) for seed in range(3)]
    assert as_rows(found) == [
        ["trained on", "samples", "response tokens", "seeds", "NLL all"],
        ["untrained", "0", "0", "1", "2.0000"],
        ["selection", "10", "2,000", "3", "2.0000 ± 1.0000"],
    ]
    assert imread(io.BytesIO(plot(found))).std() > 0.05


@pytest.mark.slow
def test_models_trained_on_more_find_held_out_samples_likelier(
    ray_session: None, model_folder: str, tmp_path: Path
) -> None:
    rows = [{"question": f"Double {n}.", "answer": f"It is {2 * n}."} for n in range(60)]
    (tmp_path / "pool.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = Config(
        data=DataConfig(path=str(tmp_path / "pool.jsonl")),
        model=ModelConfig(base=model_folder),
        calibrate=CalibrateConfig(epochs=2, learning_rate=1e-3, global_batch_size=4),
        select=SelectConfig(ratio=0.2),
        strategy="ppl_min",
        evaluate=EvaluateConfig(holdout=0.3, seeds=1),
        storage=str(tmp_path / "storage"),
        run_dir=str(tmp_path / "run"),
    )
    context = prepare(config, Progress(io.StringIO()))
    results = evaluate(context)
    by_arm = {result.arm: result for result in results}
    held_out, rest = ingest_pool(context, build=False).divide(0.3, 0)
    assert not set(held_out.ids()) & set(rest.ids()) and len(held_out) + len(rest) == 60
    assert by_arm["selection"].samples == by_arm["random"].samples == len(rest) // 5
    assert by_arm["full pool"].samples == len(rest)
    tokens = {arm: result.tokens for arm, result in by_arm.items()}
    whole = sum(sum(table["response_tokens"].to_pylist()) for table in rest.index())
    assert tokens["untrained"] == 0 < tokens["selection"] < tokens["full pool"] == whole
    nll = {arm: result.nll["general"] for arm, result in by_arm.items()}
    assert nll["full pool"] < nll["selection"] < nll["untrained"]
    write(context.folder, results, {})
    written = json.loads((tmp_path / "run/evaluation.json").read_text())["results"]
    assert fmean(row["nll"]["general"] for row in written) == fmean(nll.values())
    chosen = list(rest.ids())[:7]
    drawn = as_many(rest, chosen, 0)
    assert len(set(drawn)) == 7 and set(drawn) <= set(rest.ids()) and drawn != chosen
