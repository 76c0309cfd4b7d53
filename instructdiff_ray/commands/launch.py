"""A command that works with settings: its stage run on them, a user's mistake told in one line."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from ray.exceptions import RayError

from instructdiff_ray.autoscaler import waiting_line
from instructdiff_ray.commands.ray_start import quiet_libraries, start_ray
from instructdiff_ray.commands.settings import (
    SETTINGS_ERRORS,
    in_one_line,
    run_hydra,
    typed_config,
)
from instructdiff_ray.config.run import Config
from instructdiff_ray.context import (
    RunContext,
    check_settings,
    list_data,
    prepare,
    run_folder,
    run_name,
)
from instructdiff_ray.demo.artifacts import DEMO, demo_model, demo_pool
from instructdiff_ray.errors import UserError, require, user_error_in
from instructdiff_ray.evaluation.lm_eval import check_tasks
from instructdiff_ray.models.find import find_model
from instructdiff_ray.pool.hub_data import pin_paths
from instructdiff_ray.progress import Progress
from instructdiff_ray.resources import missing_gpus
from instructdiff_ray.results.console import sweep_table
from instructdiff_ray.results.watch import watched
from instructdiff_ray.storage.artifacts import Storage
from instructdiff_ray.storage.filesystem import absolute, is_uri, join

SWEEP = run_name()

Stage = Callable[[RunContext], dict[str, Any] | None]


def launch(command: str, stage: Stage, arguments: Sequence[str], computes: bool = True) -> None:
    """Run a command's stage, or a sweep over it (`-m`), with the settings of its command line; then
    exit.

    stage: may give the summary of what it selected; computes: whether it needs Ray. Exit status 0
    only when all of it is complete.
    """
    quiet_libraries()
    failures: list[str] = []
    points: list[tuple[dict[str, str], dict[str, Any] | None]] = []

    def task(settings: DictConfig) -> None:
        chosen = dict(o.partition("=")[::2] for o in HydraConfig.get().overrides.task)
        points.append((chosen, None))
        try:
            config = _of_point(typed_config(settings))
            points[-1] = (chosen, run_stage(command, stage, config, computes))
        except UserError as error:
            failures.append(_say(str(error)))
        except OmegaConfBaseException as error:
            failures.append(_say(in_one_line(error)))

    try:
        run_hydra(task, arguments)
    except UserError as error:
        failures.append(_say(str(error)))
    except SETTINGS_ERRORS as error:
        failures.append(_say(in_one_line(error)))
    except KeyboardInterrupt:
        failures.append(_say("interrupted; the same command goes on where it stopped"))
    if len(points) > 1 and any(summary for _, summary in points):
        print(f"\nall runs of the sweep\n{sweep_table(points)}", flush=True)
    sys.exit(1 if failures else 0)


def run_stage(command: str, stage: Stage, config: Config, computes: bool) -> dict[str, Any] | None:
    """Check the configuration, start Ray where the stage needs it, and run the stage.

    Raises UserError, also for what this machine or Ray raise where a person can help.
    """
    with told_as_user_errors():
        return _run_stage(command, stage, config, computes)


@contextmanager
def told_as_user_errors() -> Iterator[None]:
    """Raises UserError for what this machine or Ray raise where a person can help."""
    try:
        yield
    except (OSError, MemoryError, RayError) as error:
        user_error = user_error_in(error)
        if user_error is None:
            raise
        raise user_error from error


def _run_stage(command: str, stage: Stage, config: Config, computes: bool) -> dict[str, Any] | None:
    if os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR"):
        _check_outlives_job(config)
    progress = Progress(why_idle=waiting_line if computes else None)
    if tasks := config.evaluate.tasks:
        check_tasks(tuple(tasks))
    if not computes:
        return stage(prepare(_without_demo(config), progress))
    context = prepare(with_demo(config, progress), progress)
    with watched(context, command):
        start_ray(config.cluster)
        # What is in storage needs none, so it is only refused where they are really wanted.
        for part in ("train", "score"):
            if line := missing_gpus(config.cluster, part):
                progress.say(f"warning: {line}")
        return stage(context)


def with_demo(config: Config, progress: Progress) -> Config:
    """The configuration with the demo's own pool and model in place of the word `demo`.

    They are made where they are not in storage yet, so what can be found wrong before is.
    """
    data, model = config.data, config.model
    if DEMO not in (*data.paths, model.base):
        return config
    check_settings(config)
    storage = Storage(absolute(config.storage))
    if data.paths == [DEMO]:
        if model.base != DEMO:
            find_model(model)
        data = replace(data, path=demo_pool(storage, progress))
    if model.base == DEMO:
        data = pin_paths(data, progress.say)
        list_data(data)
        model = replace(model, base=demo_model(storage, progress))
    return replace(config, data=data, model=model)


def _without_demo(config: Config) -> Config:
    """The configuration; UserError where it names what the demo would make."""
    require(
        DEMO not in (*config.data.paths, config.model.base),
        "the demo makes its own pool and model; name yours: data.path=… model.base=… domain=…",
    )
    return config


def _of_point(config: Config) -> Config:
    """The configuration, in a sweep with a run folder of the point's own."""
    job = HydraConfig.get()
    if job.mode == RunMode.MULTIRUN:
        config = replace(config, run_dir=join(run_folder(config, SWEEP), str(job.job.num)))
    return config


def _check_outlives_job(config: Config) -> None:
    for name in ("storage", "run_dir"):
        path = getattr(config, name)
        if path is not None and not is_uri(path) and not os.path.isabs(path):
            raise UserError(
                f"{name}={path} is relative, and a submitted job runs in a temporary folder; give"
                f" an absolute path or a URI, such as {name}={absolute('/data')}/{path}"
            )


def _say(line: str) -> str:
    print(f"error: {line}", file=sys.stderr, flush=True)
    return line
