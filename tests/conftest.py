"""One Ray for the session, one tiny model, and no network."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path

# Before anything imports torch, Ray or transformers: nothing is fetched, nothing phones home.
os.environ.update(
    HF_HUB_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
    RAY_USAGE_STATS_ENABLED="0",
    RAY_BACKEND_LOG_LEVEL="fatal",
)

import pytest
import ray
import ray.data  # here, for its log handlers keep the stream that stands when it is imported
import torch
from hypothesis import HealthCheck, settings

from instructdiff_ray.config.data import DataConfig, ModelConfig
from instructdiff_ray.config.run import Config
from instructdiff_ray.config.training import CalibrateConfig
from instructdiff_ray.context import RunContext, prepare
from instructdiff_ray.demo.model import train_model
from instructdiff_ray.demo.pool import prose, write_pool
from instructdiff_ray.models.find import find_model
from instructdiff_ray.models.model import Model
from instructdiff_ray.progress import Progress
from tests.s3 import Server, serving

# The models are tiny; more threads than one only wait for each other.
torch.set_num_threads(1)
# No test fails for a machine that is slow or busy.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")
SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def s3() -> Iterator[Server]:
    """An S3 server of this process, found by the variables by which users name theirs."""
    with serving() as server:
        yield server


@pytest.fixture(scope="session")
def ray_session(s3: Server) -> Iterator[None]:
    """Four logical CPUs, so that actors, trainers and readers fit side by side on two cores, and a
    GPU at least, whether there is one or not. The workers find the S3 server."""
    ray.init(
        num_cpus=4,
        num_gpus=max(1, torch.cuda.device_count()),
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield
    ray.shutdown()


@pytest.fixture
def unusable_gpu(ray_session: None) -> str:
    """What is said, as a pattern, of the GPU that Ray hands out here and torch can't use."""
    if torch.cuda.is_available():
        pytest.skip("torch can use this machine's GPU")
    return r"^torch \S+ on \S+ (is a CPU build|finds no GPU)[^\n]+$"


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small language model, trained a few steps: real in all but its quality."""
    folder = str(tmp_path_factory.mktemp("model"))
    train_model(folder, prose(size=400), steps=20)
    return folder


@pytest.fixture(scope="session")
def model(model_folder: str) -> Model:
    return find_model(ModelConfig(base=model_folder))


@pytest.fixture
def context(tmp_path: Path, model_folder: str) -> RunContext:
    """A command over twenty rows, before it has done anything."""
    write_pool(str(tmp_path / "pool.jsonl"), size=20)
    config = Config(
        data=DataConfig(path=str(tmp_path / "pool.jsonl")),
        model=ModelConfig(base=model_folder),
        calibrate=CalibrateConfig(max_length=128),
        storage=str(tmp_path / "storage"),
        run_dir=str(tmp_path / "run"),
    )
    return prepare(config, Progress(io.StringIO()))


@pytest.fixture(scope="session")
def shared() -> Path:
    if not (SHARED / "data").is_dir():
        pytest.skip("the real pools are not on this machine")
    return SHARED


@pytest.fixture
def bucket(s3: Server) -> str:
    """The URI of a bucket on the S3 server."""
    return s3.uri
