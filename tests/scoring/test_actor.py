"""The scoring actor, called where it stands."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import ray
import torch

from instructdiff_ray.config.data import TemplateConfig
from instructdiff_ray.engine.throughput import Throughput
from instructdiff_ray.models.encoding import EncoderSpec
from instructdiff_ray.models.model import Model
from instructdiff_ray.models.template import Encoded
from instructdiff_ray.pool.pool import PARTS
from instructdiff_ray.sample import Part, Reject
from instructdiff_ray.scoring.actor import PAYING_TOKENS, Scorer
from instructdiff_ray.scoring.blocks import encoded_columns
from instructdiff_ray.scoring.crash_guard import MAX_DEATHS, start_crash_guard
from instructdiff_ray.scoring.dataflow import Tokenize
from instructdiff_ray.scoring.plan import ScoreTarget, by_encoding
from instructdiff_ray.storage.filesystem import Folder

pytestmark = pytest.mark.usefixtures("ray_session")


NOWHERE = Folder("/nowhere")  # an actor writes no shards


def whole_samples(model: Model) -> ScoreTarget:
    encoding = EncoderSpec(model, TemplateConfig(), 128, truncate=False)
    return ScoreTarget("base", model, encoding, NOWHERE)


def make_scorer(model: Model, tokens_per_batch: int) -> Scorer:
    threads = torch.get_num_threads()
    scorer = Scorer([whole_samples(model)], "fp32", tokens_per_batch, 1, 0, start_crash_guard())
    torch.set_num_threads(threads)
    return scorer


@pytest.fixture(scope="module")
def block() -> pa.Table:
    rng = np.random.default_rng(0)
    lengths = [5, 40, 12, 90, 33, 7, 60, 21]
    encoded: list[Encoded | Reject] = []
    for length in lengths:
        ids, response = rng.integers(0, 100, length).tolist(), [False] + [True] * (length - 1)
        encoded.append(Encoded(ids, response, [False] * length, False))
    names = [f"{number:032x}" for number in range(len(lengths))]
    return pa.table({"sample_id": names, **encoded_columns(0, encoded)})


def test_a_batch_that_the_memory_does_not_hold_is_halved_until_it_does(
    model: Model, block: pa.Table
) -> None:
    expected = make_scorer(model, 1000)(block)
    scorer, room = make_scorer(model, 1000), 70

    def device_of_little_memory(module: Any, arguments: Any, options: dict[str, Any]) -> None:
        if options["input_ids"].numel() > room:
            raise torch.OutOfMemoryError("CUDA out of memory")

    body = scorer.scorers[0]["base"].model.base_model
    body.register_forward_pre_hook(device_of_little_memory, with_kwargs=True)
    scored = scorer(block)
    assert scored["sample_id"] == expected["sample_id"]
    assert 30 <= scorer.tokens_per_batch < 1000  # halved, and not to nothing
    reasons = scored["base_reason"].to_pylist()
    assert reasons == [None, None, None, "out_of_memory", None, None, None, None]
    fits = pa.array([reason is None for reason in reasons])
    for name in ("base_nll", "base_entropy"):
        one, other = (table.filter(fits)[name].to_numpy() for table in (scored, expected))
        assert np.allclose(one, other, atol=1e-5)
        assert scored[name].null_count == 1


def test_targets_that_share_a_block_have_the_scores_that_each_has_alone(model: Model) -> None:
    encoding = EncoderSpec(model, TemplateConfig(), 128, truncate=False)
    targets = [
        ScoreTarget("base", model, encoding, NOWHERE),
        ScoreTarget("calibrated", replace(model, identity="other"), encoding, NOWHERE),
        ScoreTarget("alone", model, encoding.alone(), NOWHERE),
        ScoreTarget("rating-0-0", model, EncoderSpec.for_rating(model, 0), NOWHERE),
        ScoreTarget("rating-0-3", model, EncoderSpec.for_rating(model, 3), NOWHERE),
    ]
    rows = [
        [Part("instruction", f"What is {n}?"), Part("response", "one" + " more" * n)]
        for n in range(6)
    ]
    parts = [[part._asdict() for part in row] for row in rows]
    pool = pa.table({"sample_id": [f"{n:032x}" for n in range(6)], "parts": pa.array(parts, PARTS)})

    def scores_of(targets: list[ScoreTarget]) -> pa.Table:
        scorer = Scorer(targets, "fp32", 100, 1, 0, start_crash_guard())
        return scorer(Tokenize(list(by_encoding(targets)), None)(pool))

    threads = torch.get_num_threads()
    together = scores_of(targets)
    by_target = [pc.sum(together[f"{target.name}_tokens"]).as_py() for target in targets]
    assert sum(by_target) == pc.sum(together["tokens"]).as_py() and min(by_target) > 0
    for target in targets:
        alone = scores_of([target])
        for name in set(alone.column_names) - {field.name for field in fields(Throughput)}:
            assert together[name].to_pylist() == pytest.approx(alone[name].to_pylist()), name
    torch.set_num_threads(threads)
    measures = ["base_nll", "alone_nll", "rating-0-0_rating", "rating-0-3_rating"]
    assert len({tuple(together[name].to_pylist()) for name in measures}) == 4


def test_a_sample_is_quarantined_only_in_the_encoding_that_kills(
    model: Model, block: pa.Table
) -> None:
    scorer = make_scorer(model, 1000)
    expected = scorer(block)
    killer = f"{block['sample_id'][3]} (encoding 0)"
    for _ in range(MAX_DEATHS):  # as scorers that died have left it
        assert not scorer.guard.quarantined(killer)
    scorer.guard.begin(f"block {block['sample_id'][0]}")
    scored = scorer(block)
    reasons = scored["base_reason"].to_pylist()
    assert reasons == [None] * 3 + ["kills_scorer"] + [None] * 4
    kept = pa.array([reason is None for reason in reasons])
    for name in ("base_nll", "base_entropy"):
        one, other = (table.filter(kept)[name].to_numpy() for table in (scored, expected))
        assert np.allclose(one, other, atol=1e-5)


def test_a_part_without_a_wanted_sample_is_no_block(model: Model, block: pa.Table) -> None:
    encodings = [EncoderSpec.for_rating(model, 0), whole_samples(model).encoding]
    pool = pa.table({"sample_id": ["0" * 32], "parts": pa.array([[]], PARTS)})
    nothing = Tokenize(encodings, ray.put(np.array([7], np.uint64)))(pool)
    assert nothing.num_rows == 0 and len(nothing.column_names) == 1 + 4 * len(encodings)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gpu_finds_its_budget_and_scores_as_the_processor_does(
    model: Model, block: pa.Table, precision: str
) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    expected = make_scorer(model, 1000)(block)
    scorer = Scorer([whole_samples(model)], precision, None, 1, 1, start_crash_guard())
    assert 2048 <= scorer.tokens_per_batch <= PAYING_TOKENS["cuda"]
    assert scorer.scorers[0]["base"].packed == (precision == "bf16")  # flash attention has no fp32
    scored = scorer(block)
    for name in ("base_nll", "base_entropy"):
        tolerance = 1e-4 if precision == "fp32" else 0.1
        assert np.allclose(scored[name].to_numpy(), expected[name].to_numpy(), atol=tolerance)
