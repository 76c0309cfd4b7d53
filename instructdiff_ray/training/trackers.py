"""Experiment trackers that the Trainer can report to.

Each takes its settings (project, server, key) from the environment variables that it documents.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec

from instructdiff_ray.errors import require
from instructdiff_ray.storage.filesystem import Folder, is_uri, open_filesystem

TENSORBOARD = "tensorboard"
# By their names in transformers, packages of which one must be there.
PACKAGES = {
    TENSORBOARD: ("tensorboard", "tensorboardX"),
    "wandb": ("wandb",),
    "mlflow": ("mlflow",),
}
FOLDER_VARIABLE = "TENSORBOARD_LOGGING_DIR"


def check_trackers(names: Sequence[str]) -> None:
    """Raises UserError for one that is not known here, or whose package is not installed."""
    for name in names:
        setting = f"cluster.train.report_to names {name}, which"
        require(name in PACKAGES, f"{setting} is not known; use {', '.join(PACKAGES)}")
        require(
            any(find_spec(package) for package in PACKAGES[name]),
            f"{setting} is not installed; install {PACKAGES[name][0]} on all machines (pip install"
            f" {PACKAGES[name][0]}) or leave it out",
        )


@contextmanager
def tensorboard_files(folder: Folder) -> Iterator[None]:
    """TensorBoard's files of the block go to this folder, if the environment does not say where.

    In an object store they are there when the block has succeeded: TensorBoard's writer appends to
    its file, which a store can't.
    """
    if FOLDER_VARIABLE in os.environ:
        yield
        return
    with tempfile.TemporaryDirectory() as temporary:
        in_store = is_uri(folder.path)
        os.environ[FOLDER_VARIABLE] = temporary if in_store else open_filesystem(folder.path)[1]
        try:
            yield
        finally:
            del os.environ[FOLDER_VARIABLE]
        if os.listdir(temporary):
            folder.upload(temporary)
