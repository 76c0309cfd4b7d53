"""Checkpoints on disks and in stores that are as bad as real ones."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from pyarrow import fs as pafs
from safetensors.torch import load_file

from instructdiff_ray.config.cluster import TrainResources
from instructdiff_ray.demo.pool import write_pool
from instructdiff_ray.models.model import Model
from instructdiff_ray.storage.artifacts import MANIFEST, Storage
from instructdiff_ray.storage.filesystem import Folder
from instructdiff_ray.training.task import TrainTask
from tests.faults import Gate, mounted_disk, started
from tests.training.test_worker import distance, one_worker, task, trained

__all__ = ["one_worker", "task"]  # fixtures
ROOT = Path(__file__).resolve().parents[2]
BATCH = 64


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own, of 64 MiB."""
    with mounted_disk(tmp_path / "disk", "64m") as folder:
        yield folder


@pytest.mark.slow
def test_a_disk_that_is_full_during_a_checkpoint_costs_neither_an_earlier_one_nor_the_training(
    task: TrainTask, one_worker: dict[str, torch.Tensor], disk: Path, tmp_path: Path
) -> None:
    def checkpointed(folder: Path, name: str) -> dict[str, torch.Tensor]:
        return trained(
            replace(
                task,
                resources=TrainResources(tokens_per_device=256, checkpoint_minutes=0),
                target=Folder(str(tmp_path / name)),
                checkpoints=Storage(str(folder)).artifact("checkpoints", "0123"),
            )
        )

    assert distance(one_worker, checkpointed(tmp_path, "roomy")) == 0
    (roomy,) = tmp_path.glob("checkpoints/0123/attempt-*")  # the last; those before are deleted
    size = sum(path.stat().st_size for path in roomy.rglob("*") if path.is_file())
    # A checkpoint and a half.
    filler = shutil.disk_usage(disk).free - 3 * size // 2
    (disk / "filler").write_bytes(bytes(filler))
    assert distance(one_worker, checkpointed(disk, "full")) == 0
    kept = Storage(str(disk)).artifact("checkpoints", "0123").finished()
    assert kept and kept.info["step"] == 1
    assert [path.name for path in Path(kept.folder.path).parent.glob("attempt-*")] == [
        Path(kept.folder.path).name
    ]


@pytest.fixture
def reads(bucket: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[tuple[int, int]]]:
    """By object of the store, how many bytes each read took, and how many it has."""
    from moto.s3.responses import S3Response

    answer, noted = S3Response._key_response, defaultdict[str, list[tuple[int, int]]](list)

    def note(self: Any, request: Any, url: str) -> Any:
        status, headers, content = answer(self, request, url)
        if request.method == "GET" and status == 200:
            size = len(content)
            begin, _, end = (
                request.headers.get("range", "bytes=0-").removeprefix("bytes=").partition("-")
            )
            last = min(int(end or size), size - 1)
            noted[request.path].append((last - int(begin) + 1, size))
        return status, headers, content

    monkeypatch.setattr(S3Response, "_key_response", note)
    return noted


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_sharded_workers_go_on_from_an_object_store_after_one_download(
    model: Model,
    bucket: str,
    reads: dict[str, list[tuple[int, int]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_pool(str(tmp_path / "pool.jsonl"), seed=9, size=2600)
    gate = Gate(tmp_path / "gate")
    base = gate.model(model, tmp_path / "model").path

    def command(job: str, storage: str) -> list[str]:
        return [
            sys.executable,
            str(ROOT / f"jobs/{job}.py"),
            f"data.path={tmp_path / 'pool.jsonl'}",
            f"model.base={base}",
            "model.trust_remote_code=true",
            "calibrate.epochs=1",
            f"calibrate.global_batch_size={BATCH}",
            "calibrate.learning_rate=1e-3",
            "calibrate.max_length=256",
            "cluster.train.checkpoint_minutes=0",
            "cluster.train.workers=2",
            "cluster.train.fsdp=true",
            f"storage={storage}",
        ]

    def weights(storage: str) -> dict[str, torch.Tensor]:
        store, path = pafs.FileSystem.from_uri(f"{storage}/models")
        files = store.get_file_info(pafs.FileSelector(path, recursive=True))
        (found,) = (f.path for f in files if f.path.endswith("model.safetensors"))
        folder = tmp_path / storage.rpartition("/")[2]
        folder.mkdir()
        pafs.copy_files(found, str(folder / "model.safetensors"), source_filesystem=store)
        return load_file(folder / "model.safetensors")

    for storage in ("undisturbed", "killed"):
        subprocess.run(command("ingest", f"{bucket}/{storage}"), check=True, capture_output=True)
    log = tmp_path / "log"
    with started(command("calibrate", f"{bucket}/undisturbed"), log) as process:
        assert process.wait() == 0, log.read_text()
    # In the third of four steps, when the checkpoint of the first is finished.
    gate.shut(after=2 * BATCH // 2)
    with started(command("calibrate", f"{bucket}/killed"), log) as process:

        def arrival() -> psutil.Process:
            waiting = gate.arrival(lambda: process.poll() is not None)
            assert waiting, log.read_text()
            return waiting

        workers = {arrival().pid, arrival().pid}
        assert len(workers) == 2
        reads.clear()
        # What is left behind the first step, and no more.
        gate.shut(after=3 * BATCH // 2)
        psutil.Process(min(workers)).kill()
        ended = gate.arrival(lambda: process.poll() is not None)
        assert ended is None, "a training began anew"
        assert process.wait() == 0, log.read_text()
    gate.open()
    assert distance(weights(f"{bucket}/undisturbed"), weights(f"{bucket}/killed")) == 0
    checkpoint = {k: r for k, r in reads.items() if "/checkpoints/" in k and MANIFEST not in k}
    assert any(key.endswith(".distcp") for key in checkpoint)
    for key, parts in checkpoint.items():
        (size,) = {size for _, size in parts}
        assert sum(taken for taken, _ in parts) == size, key
    # The copy is gone, as is the one of the training set.
    assert not [p for p in (tmp_path / "cache").rglob("*") if p.suffix in (".distcp", ".arrow")]
