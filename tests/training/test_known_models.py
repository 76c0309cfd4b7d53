"""Which model is taken where one was trained here, or elsewhere, or both."""

from __future__ import annotations

from pathlib import Path

import pytest

from instructdiff_ray.pipeline import calibrate_on
from instructdiff_ray.training.calibrate import _checkpoints, model_artifact
from instructdiff_ray.training.known_models import (
    NOTE,
    Training,
    find_calibrated,
    note_training,
    training_of,
)
from tests.sharing.test_pull import IDS, TRAINED_ON, calibrated, make_context, write_pool


def test_whoever_finds_a_model_finished_deletes_what_is_left_of_its_checkpoints(
    tmp_path: Path, model_folder: str
) -> None:
    context = make_context(tmp_path, model_folder, "storage")
    pool, model = write_pool(context.storage, IDS, 1), calibrated(context)
    artifact, _ = model_artifact(context.config, context.base, TRAINED_ON, context.storage)
    checkpoints = _checkpoints(artifact.key, context.config.cluster.train, context.storage)
    checkpoints.home.write_bytes("attempt-1/weights", b"of a run that died when it had finished")
    assert calibrate_on(context, pool, TRAINED_ON, build=False) == model
    assert checkpoints.home.exists(), "who only looks deletes nothing"
    assert calibrate_on(context, pool, TRAINED_ON) == model
    assert not checkpoints.home.exists()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"inputs": {}, "weights": "a"}'])
def test_a_damaged_note_counts_as_none(content: bytes, tmp_path: Path, model_folder: str) -> None:
    context = make_context(tmp_path, model_folder, "storage")
    artifact, inputs = model_artifact(context.config, context.base, TRAINED_ON, context.storage)
    note_training(artifact, Training(inputs, "f" * 16, 5), "me/scores@1")
    known = find_calibrated(context.base, artifact)
    assert known and known.known_from == "me/scores@1"
    artifact.home.write_bytes(NOTE, content)
    assert find_calibrated(context.base, artifact) is None and training_of(artifact) is None
    model = calibrated(context)
    assert find_calibrated(context.base, artifact) == model
