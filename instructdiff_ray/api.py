"""The method as a function: `from instructdiff_ray import select`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any

import ray.data
from ray.data import SaveMode

from instructdiff_ray.commands.launch import run_stage, told_as_user_errors
from instructdiff_ray.commands.ray_start import quiet_libraries, start_ray
from instructdiff_ray.commands.run import stage
from instructdiff_ray.commands.settings import config_of
from instructdiff_ray.config.run import Config
from instructdiff_ray.context import check_settings, run_folder, run_name
from instructdiff_ray.demo.artifacts import DEMO
from instructdiff_ray.errors import UserError, require
from instructdiff_ray.models.find import find_model
from instructdiff_ray.results.status import REPORT
from instructdiff_ray.storage.filesystem import Folder, absolute, join, open_filesystem

StrPath = str | PathLike[str]
Paths = StrPath | Sequence[StrPath] | Mapping[str, StrPath | Sequence[StrPath]]


@dataclass(frozen=True)
class Selection:
    """What a run has selected. folder: the run's, a path or URI; summary: as `summary.json`."""

    folder: str
    summary: Mapping[str, Any]

    @property
    def selected(self) -> ray.data.Dataset:
        """The selected rows, as they came."""
        filesystem, path = open_filesystem(join(self.folder, "selected.jsonl"))
        lines = ray.data.read_text(path, filesystem=filesystem, override_num_blocks=1)
        return lines.map(_row)

    @property
    def ranking(self) -> ray.data.Dataset:
        """Every sample of the pool with its scores and fate, in the order of `sample_id`."""
        filesystem, path = open_filesystem(join(self.folder, "ranking.parquet"))
        return ray.data.read_parquet(path, filesystem=filesystem)

    @property
    def report(self) -> str:
        """The path or URI of the report, a page of HTML."""
        return join(self.folder, REPORT)


def select(data: Paths | ray.data.Dataset, *settings: str) -> Selection:
    """Run the whole method over instruction data; what is in storage already is taken from there.

    data: what `data.path` takes (files, folders, datasets of the Hub; by domain where it is a
        mapping), or a Dataset of rows, of which the run's folder gets a copy as Parquet.
    settings: as on the command line: "model=qwen2.5-0.5b", "domain=math", "select.ratio=0.05".

    Ray that runs is used; else it is joined or started as `cluster.address` says. Raises UserError,
    one line that says what is wrong and what to do.
    """
    quiet_libraries()
    _check_settings(settings)
    config = config_of(settings)
    folder = absolute(run_folder(config, run_name()))
    config = replace(config, run_dir=folder)
    if isinstance(data, ray.data.Dataset):
        path: Any = _copied(data, config, folder)
    else:
        path = _paths(data)
    config = replace(config, data=replace(config.data, path=path))
    summary = run_stage("run", stage, config, computes=True)
    assert summary is not None
    return Selection(folder, summary)


def _check_settings(settings: Sequence[Any]) -> None:
    for setting in settings:
        require(
            isinstance(setting, str),
            f"{setting!r} is no setting; give each as a text of its own, such as 'domain=math'",
        )
        require(
            not setting.lstrip("+").startswith("data.path="),
            f"{setting}: the data is the first argument of select; leave out the setting",
        )


def _paths(data: Any) -> Any:
    """As `data.path` has them. Raises UserError for what is none."""
    if isinstance(data, Mapping):
        return {str(domain): _paths(of_domain) for domain, of_domain in data.items()}
    if isinstance(data, str | PathLike):
        return str(data)
    if isinstance(data, list | tuple) and all(isinstance(path, str | PathLike) for path in data):
        return [str(path) for path in data]
    raise UserError(
        f"data is a {type(data).__name__}; give paths, or rows as a ray.data.Dataset, such as"
        " ray.data.from_items(rows) or ray.data.from_pandas(frame)"
    )


def _copied(dataset: ray.data.Dataset, config: Config, folder: str) -> str:
    """The path of a copy in the run's folder, beside earlier ones; settings are checked first."""
    check_settings(config)
    if config.model.base != DEMO:
        find_model(config.model)
    start_ray(config.cluster)
    copy = join(folder, f"dataset-{run_name()}")
    filesystem, path = open_filesystem(copy)
    with told_as_user_errors():
        dataset.write_parquet(path, filesystem=filesystem, mode=SaveMode.CREATE)
        require(bool(Folder(copy).sizes()), "the dataset holds no row")
    return copy


def _row(line: dict[str, str]) -> dict[str, Any]:
    row: dict[str, Any] = json.loads(line["text"])
    return row
