"""Trackers that are named are there before anything starts, and their files outlive the worker."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from instructdiff_ray.errors import UserError
from instructdiff_ray.storage.filesystem import Folder
from instructdiff_ray.training import trackers as module
from instructdiff_ray.training.trackers import FOLDER_VARIABLE, check_trackers, tensorboard_files
from tests.s3 import Server


def test_a_tracker_that_is_unknown_or_not_installed_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check_trackers([])
    check_trackers(["tensorboard"])  # Ray Train brings a writer of its files
    with pytest.raises(UserError, match="report_to names comet, which is not known; use tensor"):
        check_trackers(["tensorboard", "comet"])
    monkeypatch.setitem(module.PACKAGES, "wandb", ("no_such_package",))
    with pytest.raises(UserError, match="report_to names wandb, which is not installed"):
        check_trackers(["wandb"])


def test_tensorboards_files_go_to_the_folder_or_where_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    with tensorboard_files(Folder(str(tmp_path))):
        assert os.environ[FOLDER_VARIABLE] == str(tmp_path)
    assert FOLDER_VARIABLE not in os.environ
    monkeypatch.setenv(FOLDER_VARIABLE, "/elsewhere")
    with tensorboard_files(Folder(str(tmp_path))):
        assert os.environ[FOLDER_VARIABLE] == "/elsewhere"


def test_in_an_object_store_they_are_there_at_the_end(
    s3: Server, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    folder = Folder(f"{bucket}/tensorboard")
    with tensorboard_files(folder):
        Path(os.environ[FOLDER_VARIABLE], "events").write_bytes(b"loss")
    assert folder.read_bytes("events") == b"loss"
