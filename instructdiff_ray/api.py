"""The method as a function: `from instructdiff_ray import select`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray.data
from ray.data import SaveMode

from instructdiff_ray.commands.launch import run_stage
from instructdiff_ray.commands.ray_start import quiet_libraries, start_ray
from instructdiff_ray.commands.run import stage
from instructdiff_ray.commands.settings import config_of
from instructdiff_ray.context import run_name
from instructdiff_ray.results.status import REPORT
from instructdiff_ray.storage.filesystem import absolute, join, open_filesystem

# Where a run's folder keeps the rows of a dataset that was given in memory.
GIVEN = "dataset"

Paths = str | Sequence[str] | Mapping[str, str | Sequence[str]]


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
        mapping), or a Dataset of rows, which is written to the run's folder first.
    settings: as on the command line: "model=qwen2.5-0.5b", "domain=math", "select.ratio=0.05".

    Ray that runs is used; else it is joined or started as `cluster.address` says. Raises UserError,
    one line that says what is wrong and what to do.
    """
    quiet_libraries()
    config = config_of(settings)
    folder = absolute(config.run_dir or join(config.storage, "runs", run_name()))
    if isinstance(data, ray.data.Dataset):
        start_ray(config.cluster)
        data = _written(data, join(folder, GIVEN))
    config = replace(config, run_dir=folder, data=replace(config.data, path=data))
    summary = run_stage("select", stage, config, computes=True)
    assert summary is not None
    return Selection(folder, summary)


def _written(dataset: ray.data.Dataset, folder: str) -> str:
    filesystem, path = open_filesystem(folder)
    dataset.write_parquet(path, filesystem=filesystem, mode=SaveMode.OVERWRITE)
    return folder


def _row(line: dict[str, str]) -> dict[str, Any]:
    row: dict[str, Any] = json.loads(line["text"])
    return row
