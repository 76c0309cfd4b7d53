"""Errors that are answered in one line: the user's mistakes, and the limits of a machine."""

from __future__ import annotations

import re

# What a machine says when it has come to an end, and what that means to a person. The same command
# goes on where it stopped, for what is finished is in storage.
# Only lines that begin with an exception's name are read: a sample's text may say what it likes.
LIMITS = {
    r"^\S*(OutOfDiskError\b|OSError\b.*(No space left on device|Disk quota exceeded))": (
        "the disk is full (storage, Ray's own folder, or TMPDIR); free some space and give the same"
        " command again, it goes on where it stopped"
    ),
    r"^\S*(OutOfMemoryError|MemoryError|ObjectStoreFullError)\b"
    r"|^\S*OSError\b.*Cannot allocate memory"
    r"|^\S*RuntimeError\b.*(can't allocate memory|CUBLAS_STATUS_ALLOC_FAILED)": (
        "a machine or a GPU ran out of memory; set a smaller cluster.score.tokens_per_batch or"
        " cluster.train.tokens_per_device, or take a larger machine, and give the same command"
        " again, it goes on where it stopped"
    ),
    r"^\S*OSError\b.*AWS Error "
    r"(SLOW_DOWN|THROTTLING|SERVICE_UNAVAILABLE|INTERNAL_FAILURE|REQUEST_TIMEOUT|NETWORK_CONNECTION"
    r"|UNKNOWN \(HTTP status 5\d\d\))": (
        "the object store does not answer, or only errors of its own (AWS_ENDPOINT_URL, the network"
        " and the store's own limits are where to look); give the same command again, it goes on"
        " where it stopped"
    ),
    r"^\S*(ExecutionTimeoutError|GetTimeoutError)\b"
    # Ray Train gives its own error as text.
    r"|^The worker group startup timed out after": (
        "nothing was finished for cluster.patience_hours: no machine has the CPUs or GPUs that are"
        " asked for (`ray status` shows them), or the model is too slow for them; give the same"
        " command again, it goes on where it stopped"
    ),
}


class UserError(Exception):
    """A mistake in what the user gave: a path, a value, a model, a pool.

    Its message is one plain line that says what is wrong and what to do; a command prints it
    without a traceback and exits with status 1. Everything else that is raised is a bug and stays
    one.
    """


class DamagedFile(UserError):
    """A file of storage that is not what was written; it has been deleted."""


class UnreadableCheckpoint(UserError):
    """A checkpoint that could not be loaded, perhaps because another worker died meanwhile."""


class LostScores(DamagedFile):
    """Scores of a sample that were there are not any more."""


def require(ok: bool, line: str) -> None:
    """Raises UserError with this line where something is not so. NaN fails every comparison, so it
    can't slip through the check of a range."""
    if not ok:
        raise UserError(line)


def user_error_in(error: BaseException) -> UserError | None:
    """The UserError that `error` stands for, or None where it is a bug.

    Ray passes on the text of what a worker raised, and not the object; so the text is read.
    """
    text = f"{type(error).__name__}: {error}"
    pattern = rf"^(?:.*\W)?{re.escape(__name__)}\.(\w+): (.+)$"
    if match := re.search(pattern, text, re.MULTILINE):
        kinds = (UserError, DamagedFile, LostScores, UnreadableCheckpoint)
        return {kind.__name__: kind for kind in kinds}[match.group(1)](match.group(2))
    for limit, line in LIMITS.items():
        if re.search(limit, text, re.MULTILINE):
            return UserError(line)
    return None
