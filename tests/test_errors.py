from __future__ import annotations

import errno

import pytest

from instructdiff_ray.errors import DamagedFile, LostScores, UserError, user_error_in

TRACE = "ray::MapWorker.submit() (pid=1, ip=1.2.3.4)\n  File 'x.py', line 3, in f\n    raise E\n{}"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (RuntimeError(TRACE.format("OSError: [Errno 28] No space left on device")), "the disk"),
        (RuntimeError(TRACE.format("ray.exceptions.OutOfDiskError: full")), "the disk is full"),
        (
            RuntimeError(TRACE.format("ray.exceptions.GetTimeoutError: Get timed out")),
            "nothing was",
        ),
        (
            RuntimeError("controller error:\nThe worker group startup timed out after 9 s"),
            "patience",
        ),
        (MemoryError(), "ran out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "out of memory"),
        (RuntimeError(TRACE.format("torch.OutOfMemoryError: CUDA out of memory.")), "out of mem"),
        (RuntimeError(TRACE.format("pyarrow.lib.ArrowMemoryError: malloc of size 64")), "out of"),
        (RuntimeError(TRACE.format(f"{UserError.__module__}.UserError: its line")), "^its line$"),
        (RuntimeError(TRACE.format(f"{UserError.__module__}.DamagedFile: a part")), "^a part$"),
        (
            OSError("When listing: AWS Error SLOW_DOWN during ListObjectsV2 operation"),
            "object store",
        ),
        (OSError("When reading: AWS Error UNKNOWN (HTTP status 503) during X"), "object store"),
    ],
)
def test_what_a_worker_or_a_machine_says_is_told_in_one_line(error: Exception, line: str) -> None:
    told = user_error_in(error)
    assert told is not None
    assert "\n" not in str(told)
    with pytest.raises(UserError, match=line):
        raise told


@pytest.mark.parametrize(
    "text",
    [
        "KeyError: 'how to mend java.lang.OutOfMemoryError'",
        "ValueError: No space left on",
        "OSError: When reading: AWS Error ACCESS_DENIED during X",
    ],
)
def test_a_bug_stays_one_whatever_it_quotes(text: str) -> None:
    assert user_error_in(RuntimeError(TRACE.format(text))) is None


@pytest.mark.parametrize("kind", [UserError, DamagedFile, LostScores])
def test_a_workers_error_is_of_the_same_kind_here(kind: type[UserError]) -> None:
    text = TRACE.format(f"{kind.__module__}.{kind.__name__}: its line")
    assert type(user_error_in(RuntimeError(text))) is kind


def test_a_damaged_file_is_the_users_to_mend() -> None:
    assert issubclass(LostScores, DamagedFile) and issubclass(DamagedFile, UserError)
