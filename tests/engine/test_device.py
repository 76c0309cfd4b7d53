from __future__ import annotations

import copy
import sysconfig
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from instructdiff_ray.engine import metrics
from instructdiff_ray.engine.device import (
    device_failed,
    missing_to_compile,
    model_unlike,
    require_gpu,
)
from instructdiff_ray.engine.lm_head import output_head
from instructdiff_ray.engine.metrics import SampleScorer
from instructdiff_ray.errors import UserError
from tests.engine.test_metrics import assert_same, build, random_samples

MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
DEVICE = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
LIBRARY = RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`")
SHAPE = RuntimeError("The size of tensor a (10) must match the size of tensor b (97)")


@pytest.mark.parametrize(
    ("error", "failed", "unlike"),
    [
        (MEMORY, False, False),
        (DEVICE, True, False),
        (LIBRARY, True, False),
        (SHAPE, False, True),
        (AttributeError("no attribute 'model'"), False, True),
        (AssertionError(), False, False),
    ],
)
def test_an_error_is_of_memory_of_the_device_or_of_a_model_built_otherwise(
    error: Exception, failed: bool, unlike: bool
) -> None:
    assert (device_failed(error), model_unlike(error)) == (failed, unlike)


@pytest.mark.parametrize(
    ("cuda", "available", "bf16", "line"),
    [
        (None, False, False, r"is a CPU build .+ install the CUDA build .+ or take cluster=local$"),
        ("13.0", False, False, r"driver is too old for CUDA 13.0 .+ or take cluster=local$"),
        ("13.0", True, False, r"^Tesla T4 on .+ set cluster.precision=fp32$"),
        ("13.0", True, True, None),
    ],
)
def test_a_gpu_that_is_of_no_use_is_refused_in_a_line_that_says_what_to_do(
    cuda: str | None,
    available: bool,
    bf16: bool,
    line: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    if available:
        require_gpu("fp32")
    if line is None:
        require_gpu("bf16")
    else:
        with pytest.raises(UserError, match=line):
            require_gpu("bf16")


def test_where_nothing_can_be_compiled_the_sums_are_eager(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = tmp_path / "gcc"
    compiler.touch(0o755)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    assert missing_to_compile() == "no C compiler"
    metrics.fused.cache_clear()
    assert metrics.fused() is metrics.add_up
    metrics.fused.cache_clear()
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))
    assert missing_to_compile() == "no headers of Python"
    (tmp_path / "Python.h").touch()
    assert missing_to_compile() is None


@pytest.mark.parametrize("error", [MEMORY, DEVICE, LIBRARY])
def test_want_of_memory_when_a_model_is_tried_out_is_not_taken_for_another_architecture(
    error: Exception,
) -> None:
    model = copy.deepcopy(build("llama"))

    def fails_when_packed(module: nn.Module, arguments: object, options: dict[str, object]) -> None:
        if "cu_seq_lens_q" in options:
            raise error

    assert isinstance(model.base_model, nn.Module)
    model.base_model.register_forward_pre_hook(fails_when_packed, with_kwargs=True)
    with pytest.raises(type(error)):
        SampleScorer(model)


def test_a_head_that_adds_something_to_every_word_is_not_tiled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Tiles of ten words.
    monkeypatch.setitem(metrics.TILE_BYTES, "cpu", 10 * 4 * metrics.SLICE_POSITIONS["cpu"])
    model = copy.deepcopy(build("llama"))
    bias = torch.randn(model.config.vocab_size)

    class BiasedModel(type(model)):  # type: ignore[misc]
        def forward(self, *arguments: object, **options: object) -> Tensor:
            output = super().forward(*arguments, **options)
            output.logits = output.logits + bias
            return output

    model.__class__ = BiasedModel
    assert output_head(model, 10) is None  # a tile's logits and the bias differ in size
    assert SampleScorer(model).forward_pass() == "one sample at a time, whole logits"
    assert_same(model, random_samples(1, 7))
