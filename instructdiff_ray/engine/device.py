"""What the device that holds a model can do, and which of its errors mean that it is lost."""

from __future__ import annotations

import os
import platform
import shutil
import sysconfig
from pathlib import Path

import torch

from instructdiff_ray.errors import UserError

# What models raise that have no body under that name, or one with other arguments, outputs or
# shapes.
UNLIKE = (AttributeError, TypeError, ValueError, LookupError, RuntimeError)
# How CUDA and its libraries say that memory is short, whatever the type of the error.
SHORT_OF_MEMORY = ("out of memory", "ALLOC_FAILED")


def require_gpu(precision: str) -> None:
    """Raises UserError where torch can't use the GPU that this process was given, or the GPU does
    not multiply in this precision.

    Ray counts GPUs by their driver and hands them out whatever torch is there.
    """
    host = platform.node()
    if not (torch.version.cuda or torch.version.hip):
        raise UserError(
            f"torch {torch.__version__} on {host} is a CPU build and can't use the GPU that is"
            " asked for; install the CUDA build of that version there, or take cluster=local"
        )
    if not torch.cuda.is_available():
        raise UserError(
            f"torch {torch.__version__} on {host} finds no GPU that it can use: there is none, or"
            f" its driver is too old for CUDA {torch.version.cuda} (`nvidia-smi` shows both); renew"
            " the driver, install a build of torch for it, or take cluster=local"
        )
    if precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UserError(
            f"{torch.cuda.get_device_name()} on {host} does not multiply in bf16; set"
            " cluster.precision=fp32"
        )


def missing_to_compile() -> str | None:
    """What this machine lacks for kernels to be compiled while a program runs; None: nothing.

    Triton builds a stub in C for each of its kernels, with a compiler and against Python's headers.
    """
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "no C compiler"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "no headers of Python"
    return None


def device_failed(error: BaseException) -> bool:
    """Whether the device is lost to this process: an error of CUDA's that is none of memory.

    After one, every further call of the process fails. Libraries on top of CUDA raise theirs as
    plain RuntimeErrors, with the same beginning.
    """
    if short_of_memory(error):
        return False
    return isinstance(error, torch.AcceleratorError) or (
        isinstance(error, RuntimeError) and str(error).startswith("CUDA error")
    )


def short_of_memory(error: BaseException) -> bool:
    """Whether the device's memory did not hold what was asked for."""
    return isinstance(error, torch.OutOfMemoryError) or any(
        words in str(error) for words in SHORT_OF_MEMORY
    )


def model_unlike(error: Exception) -> bool:
    """Whether a model's code raised it because the model is not built as expected, and not for
    want of memory or of the device."""
    return isinstance(error, UNLIKE) and not (short_of_memory(error) or device_failed(error))
