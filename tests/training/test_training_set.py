"""The training set that workers map from disk is what each of its samples is when encoded alone."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest

from instructdiff_ray.config.data import DataConfig, ModelConfig
from instructdiff_ray.config.run import Config
from instructdiff_ray.config.training import CalibrateConfig
from instructdiff_ray.context import prepare
from instructdiff_ray.errors import UserError
from instructdiff_ray.models.encoding import EncoderSpec
from instructdiff_ray.models.model import Model
from instructdiff_ray.models.template import Encoded, training_example
from instructdiff_ray.pipeline import ingest_pool
from instructdiff_ray.pool.pool import Pool
from instructdiff_ray.progress import Progress
from instructdiff_ray.sample import Part
from instructdiff_ray.storage.filesystem import Folder
from instructdiff_ray.training.training_set import IGNORED, Examples, write_examples
from tests.pools import samples_table

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, model_folder: str) -> Config:
    folder = tmp_path_factory.mktemp("examples")
    rows = [
        {"question": f"Double {n}.", "answer": f"It is {2 * n}." * (n % 5 + 1)} for n in range(60)
    ]
    for number in range(3):  # several files, so several blocks
        text = "\n".join(map(json.dumps, rows[20 * number : 20 * number + 20]))
        (folder / f"{number}.jsonl").write_text(text)
    return Config(
        data=DataConfig(path=str(folder)),
        model=ModelConfig(base=model_folder),
        calibrate=CalibrateConfig(max_length=128),
        storage=str(folder / "storage"),
    )


@pytest.fixture(scope="module")
def pool(config: Config) -> Pool:
    return ingest_pool(prepare(config, Progress(io.StringIO())))


def rows(pool: Pool) -> list[dict]:
    return samples_table(pool, ["sample_id", "parts"]).sort_by("sample_id").to_pylist()


def test_the_chosen_samples_come_in_the_order_of_their_ids_as_each_is_encoded_alone(
    config: Config, pool: Pool, model: Model, tmp_path: Path
) -> None:
    chosen = rows(pool)[::3]
    encoding, folder = EncoderSpec.of(config, model), Folder(str(tmp_path))
    names = write_examples(pool, [row["sample_id"] for row in chosen], encoding, folder)
    # As of a task that was started twice: what no receipt names does not count.
    folder.write_bytes("other.arrow", folder.read_bytes(names[0]) or b"")
    examples, encoder = Examples(str(tmp_path), names), encoding.encoder()
    assert len(examples) == len(chosen) == 20
    for position, row in enumerate(chosen):
        (encoded,) = encoder.encode([[Part(**part) for part in row["parts"]]])
        assert isinstance(encoded, Encoded)
        eos = encoder.tokenizer.eos_token_id
        assert examples[position] == training_example(encoded, eos, False, 128)
    assert examples.longest == max(len(examples[n]["input_ids"]) for n in range(len(chosen)))


def test_samples_without_a_loss_fill_up_the_last_step(
    config: Config, pool: Pool, model: Model, tmp_path: Path
) -> None:
    ids = [row["sample_id"] for row in rows(pool)[:13]]
    names = write_examples(pool, ids, EncoderSpec.of(config, model), Folder(str(tmp_path)))
    examples = Examples(str(tmp_path), names)
    examples.fill_up(8)
    assert len(examples) == 16
    assert any(label != IGNORED for label in examples[12]["labels"])
    for position in range(13, 16):
        assert examples[position] == {"input_ids": [0], "labels": [IGNORED]}
    examples.fill_up(13)
    assert len(examples) == 13


def test_a_sample_that_another_tokenizer_makes_too_long_is_named_in_one_line(
    config: Config, pool: Pool, model: Model, tmp_path: Path
) -> None:
    short = replace(EncoderSpec.of(config, model), max_length=5)
    ids = [row["sample_id"] for row in rows(pool)]
    with pytest.raises(UserError, match="can't be trained on a selected sample"):
        write_examples(pool, ids, short, Folder(str(tmp_path)))
