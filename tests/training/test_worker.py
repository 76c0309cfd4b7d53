from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from tensorboardX.proto.event_pb2 import Event
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from transformers import AutoModelForCausalLM, AutoTokenizer

from instructdiff_ray.config.cluster import TrainResources
from instructdiff_ray.config.data import TemplateConfig
from instructdiff_ray.config.training import CalibrateConfig
from instructdiff_ray.demo.pool import prose
from instructdiff_ray.errors import UnreadableCheckpoint, UserError
from instructdiff_ray.models.encoding import EncoderSpec
from instructdiff_ray.models.model import Model
from instructdiff_ray.pool.pool import PARTS
from instructdiff_ray.progress import Progress
from instructdiff_ray.sample import Part, sample_id
from instructdiff_ray.storage.artifacts import Storage
from instructdiff_ray.storage.filesystem import Folder
from instructdiff_ray.training.arguments import micro_batch_size
from instructdiff_ray.training.launch import EndOnUserError, fit
from instructdiff_ray.training.task import EXAMPLES, TrainTask
from instructdiff_ray.training.training_set import WriteExamples
from instructdiff_ray.training.worker import base_model
from tests.devices import OnSmallDevices
from tests.faults import Gate, killing


@given(st.integers(1, 64), st.integers(1, 600), st.integers(1, 4096))
def test_micro_batches_meet_the_global_batch_exactly(share: int, longest: int, budget: int) -> None:
    micro = micro_batch_size(share, longest, budget)
    assert share % micro == 0
    assert micro == 1 or micro * longest <= budget


@pytest.fixture(scope="module")
def task(model: Model, tmp_path_factory: pytest.TempPathFactory) -> TrainTask:
    folder = tmp_path_factory.mktemp("train")
    texts = [text for text in prose(seed=7, size=60) if len(text) > 40][:21]
    samples = [[Part("instruction", t[:20]), Part("response", t[20:200])] for t in texts]
    table = pa.table(
        {
            "sample_id": [sample_id(sample) for sample in samples],
            "parts": pa.array([[p._asdict() for p in sample] for sample in samples], PARTS),
        }
    )
    encoding = EncoderSpec(model, TemplateConfig(), 128, False)
    write = WriteExamples(encoding, Folder(str(folder / EXAMPLES)))
    names = [write(rows)["file"][0].as_py() for rows in (table[10:], table[:10])]
    return TrainTask(
        name="one",
        model=model,
        encoding=encoding,
        calibrate=CalibrateConfig(epochs=2, learning_rate=1e-3, global_batch_size=8),
        resources=TrainResources(tokens_per_device=256),
        precision="fp32",
        seed=0,
        scratch=Folder(str(folder)),
        examples=names,
        target=Folder(str(folder / "one")),
        logs=Folder(str(folder / "tensorboard")),
        checkpoints=Storage(str(folder)).artifact("checkpoints", "one"),
    )


def trained(task: TrainTask) -> dict[str, torch.Tensor]:
    with Progress(io.StringIO()).stage("calibrate", "steps") as stage:
        fit(task, stage)
        steps = 3 * task.calibrate.epochs  # 21 samples, batches of 8
        assert (stage.count, stage.total) == (steps, steps)
    if task.calibrate.lora_rank:
        return load_file(Path(task.target.path, "adapter_model.safetensors"))
    return AutoModelForCausalLM.from_pretrained(task.target.path).state_dict()


@pytest.fixture(scope="module")
def one_worker(task: TrainTask, ray_session: None) -> dict[str, torch.Tensor]:
    resources = replace(task.resources, report_to=["tensorboard"])
    return trained(replace(task, resources=resources))


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def test_training_leaves_a_hugging_face_folder_of_safetensors_and_tokenizer(
    task: TrainTask, one_worker: dict[str, torch.Tensor]
) -> None:
    names = {path.name for path in Path(task.target.path).iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pkl"))]
    before, after = task.model.load_tokenizer(), AutoTokenizer.from_pretrained(task.target.path)
    assert before.chat_template == after.chat_template
    assert before("A text.")["input_ids"] == after("A text.")["input_ids"]
    base = task.model.load("fp32").state_dict()
    assert distance(base, one_worker) > 1e-4
    # Every parameter is trained, not the head or an adapter alone.
    assert all(not torch.equal(base[name], one_worker[name]) for name in base)


@pytest.mark.slow
def test_a_tracker_is_told_the_loss_of_each_step(
    task: TrainTask, one_worker: dict[str, torch.Tensor]
) -> None:
    (file,) = Path(task.logs.path).glob("events.*")
    data, losses, start = file.read_bytes(), {}, 0
    while start < len(data):  # length, its checksum, an event, its checksum
        end = start + 12 + int.from_bytes(data[start : start + 8], "little")
        event = Event.FromString(data[start + 12 : end])
        for value in event.summary.value:
            if value.tag == "train/loss":
                losses[event.step] = value.simple_value
        start = end + 4
    assert sorted(losses) == [1, 2, 3, 4, 5, 6]
    assert losses[6] < losses[1]


def test_a_checkpoint_that_cannot_be_loaded_ends_in_a_line_that_names_it_and_stays(
    task: TrainTask, one_worker: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    checkpoints = Storage(str(tmp_path)).artifact("checkpoints", "broken")
    with checkpoints.writer() as writer:
        writer.folder.write_bytes("trainer_state.json", b"{}")
        writer.finish({}, {"step": 2})
    broken = replace(task, target=Folder(str(tmp_path / "anew")), checkpoints=checkpoints)
    line = rf"^the checkpoints in {checkpoints.home.path} can't be loaded \(.+delete that folder"
    with pytest.raises(UserError, match=line):
        trained(broken)
    assert checkpoints.finished()
    checkpoints.home.delete()  # as it says
    assert distance(one_worker, trained(broken)) == 0


def test_a_gpu_that_torch_can_not_use_is_refused_in_one_line(
    task: TrainTask, unusable_gpu: str
) -> None:
    with pytest.raises(UserError, match=unusable_gpu):
        trained(replace(task, resources=TrainResources(gpus_per_worker=1)))


def test_a_user_error_ends_a_training_unless_another_worker_may_be_the_cause() -> None:
    callback = EndOnUserError()
    callback.after_exception(None, {0: RuntimeError("lost a peer"), 1: UnreadableCheckpoint("no")})
    with pytest.raises(UserError, match="no such model"):
        callback.after_exception(None, {0: RuntimeError("lost"), 1: UserError("no such model")})


@pytest.mark.slow
def test_a_training_that_the_device_will_not_hold_is_refused_once_and_in_one_line(
    task: TrainTask, ray_session: None
) -> None:
    # Workers of processors, for those of GPUs can't meet without one.
    fields = vars(task) | {"resources": TrainResources(workers=2)}
    line = (
        r"^this training needs about 0 GiB and the device has 0; what would fit: a larger device$"
    )
    with pytest.raises(UserError, match=line):
        trained(OnSmallDevices(**fields))
    # Worker 0 alone, in its first attempt alone.
    assert len(list(Path(task.scratch.path).glob("looked-*"))) == 1


@pytest.mark.slow
def test_two_workers_learn_what_one_does(
    task: TrainTask, one_worker: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    resources = TrainResources(workers=2, tokens_per_device=256)
    two = trained(replace(task, resources=resources, target=Folder(str(tmp_path / "two"))))
    base = task.model.load("fp32").state_dict()
    # Sums in another order; Adam's first steps turn rounding into more than that.
    assert distance(one_worker, two) < 0.02 * distance(base, one_worker)


def killed_once(task: TrainTask, folder: Path) -> dict[str, torch.Tensor]:
    """What a training leaves whose worker dies in its third step, of six."""
    gate = Gate(folder / "gate")
    killed = replace(
        task,
        model=gate.model(task.model, folder / "model"),
        resources=TrainResources(tokens_per_device=256, checkpoint_minutes=0),
        target=Folder(str(folder / "killed")),
        checkpoints=Storage(str(folder)).artifact("checkpoints", "killed"),
    )
    batch = task.calibrate.global_batch_size
    # The checkpoint of the first step is finished, and so five steps are left of one that goes on;
    # one that began anew would not get by.
    with killing(gate, after=2 * batch, then=5 * batch):
        found = trained(killed)
    finished = killed.checkpoints.finished()
    assert finished and finished.info["step"] == 5  # another run's start, had the driver died
    return found


def test_a_training_that_was_killed_goes_on_and_learns_the_same(
    task: TrainTask, one_worker: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    assert distance(one_worker, killed_once(task, tmp_path)) == 0


@pytest.mark.slow
def test_an_adapter_s_training_that_was_killed_goes_on_and_learns_the_same(
    task: TrainTask, ray_session: None, tmp_path: Path
) -> None:
    lora = replace(task, calibrate=replace(task.calibrate, lora_rank=2))
    whole = trained(replace(lora, target=Folder(str(tmp_path / "whole"))))
    assert distance(whole, killed_once(lora, tmp_path)) == 0


@pytest.mark.slow
def test_two_sharded_workers_train_the_adapter_that_one_does(
    task: TrainTask, ray_session: None, tmp_path: Path
) -> None:
    def adapter(name: str, **resources: Any) -> dict[str, torch.Tensor]:
        return trained(
            replace(
                task,
                calibrate=replace(task.calibrate, lora_rank=2),
                resources=TrainResources(tokens_per_device=256, **resources),
                target=Folder(str(tmp_path / name)),
                checkpoints=Storage(str(tmp_path)).artifact("checkpoints", name),
            )
        )

    one = adapter("one")
    two = adapter("two", workers=2, fsdp=True, checkpoint_minutes=0)
    zero = {name: torch.zeros_like(weight) for name, weight in one.items() if "lora_B" in name}
    learned = distance(zero, {name: one[name] for name in zero})
    assert distance(one, two) < 0.02 * learned
    # From the last checkpoint, that of the step before the last, the same is learned.
    assert distance(adapter("two", workers=2, fsdp=True, checkpoint_minutes=0), two) == 0
    # Of the model the adapter alone is saved: fewer bytes than a quarter of its fp32 weights.
    finished = Storage(str(tmp_path)).artifact("checkpoints", "two").finished()
    assert finished and finished.info["step"] == 5
    assert sum(finished.folder.sizes().values()) < task.model.parameters()


@pytest.mark.slow
def test_two_sharded_workers_learn_what_one_does(
    task: TrainTask, one_worker: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    sharded = replace(
        task,
        resources=TrainResources(workers=2, tokens_per_device=256, fsdp=True, checkpoint_minutes=0),
        target=Folder(str(tmp_path / "fsdp")),
        checkpoints=Storage(str(tmp_path)).artifact("checkpoints", "sharded"),
    )
    two = trained(sharded)
    base = task.model.load("fp32").state_dict()
    assert distance(one_worker, two) < 0.02 * distance(base, one_worker)
    finished = sharded.checkpoints.finished()
    assert finished and finished.info["step"] == 5
    assert "model.safetensors" not in finished.folder.sizes()
    # Each worker holds, and saves, half of every matrix and of its moments.
    for folder in ("pytorch_model_fsdp_0", "optimizer_0"):
        saved = FileSystemReader(f"{finished.folder.path}/{folder}").read_metadata()
        matrices = [
            tensor
            for tensor in saved.state_dict_metadata.values()
            if isinstance(tensor, TensorStorageMetadata) and len(tensor.size) == 2
        ]
        assert matrices
        for matrix in matrices:
            assert [chunk.sizes[0] for chunk in matrix.chunks] == [matrix.size[0] // 2] * 2


def reads_weights(rank: int, task: TrainTask, folder: str) -> None:
    """Leaves a file in the folder where this worker of two reads the weights."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2
    )
    expected = {name: weight.shape for name, weight in task.model.load("fp32").named_parameters()}
    with patch.object(Model, "load", side_effect=task.model.load) as load:
        loaded = base_model(task, sharded=True)
    if load.called:
        Path(folder, f"read-{rank}").touch()
    assert {name: weight.shape for name, weight in loaded.named_parameters()} == expected
    assert len({weight.data_ptr() for weight in loaded.parameters()}) == len(expected)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_of_sharded_workers_the_first_reads_the_weights(task: TrainTask, tmp_path: Path) -> None:
    torch.multiprocessing.spawn(reads_weights, (task, str(tmp_path)), nprocs=2)
    assert [path.name for path in tmp_path.glob("read-*")] == ["read-0"]


@pytest.mark.slow
def test_adafactor_learns_and_keeps_next_to_nothing_for_a_parameter(
    task: TrainTask, ray_session: None, tmp_path: Path
) -> None:
    factored = replace(
        task,
        calibrate=replace(task.calibrate, optimizer="adafactor"),
        resources=TrainResources(tokens_per_device=256, checkpoint_minutes=0),
        target=Folder(str(tmp_path / "adafactor")),
        checkpoints=Storage(str(tmp_path)).artifact("checkpoints", "adafactor"),
    )
    assert distance(task.model.load("fp32").state_dict(), trained(factored)) > 1e-4
    finished = factored.checkpoints.finished()
    assert finished
    sizes = finished.folder.sizes()
    assert sizes["optimizer.pt"] < sizes["model.safetensors"] / 4


@pytest.mark.slow
def test_gradient_checkpointing_and_accumulation_change_memory_and_not_the_model(
    task: TrainTask, one_worker: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    saving = replace(task.calibrate, gradient_checkpointing=True)
    resources = TrainResources(tokens_per_device=1)
    other = replace(
        task, calibrate=saving, resources=resources, target=Folder(str(tmp_path / "saving"))
    )
    base = task.model.load("fp32").state_dict()
    assert distance(one_worker, trained(other)) < 0.02 * distance(base, one_worker)
