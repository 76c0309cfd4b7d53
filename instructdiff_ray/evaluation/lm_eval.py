"""Benchmark tasks, run by EleutherAI's Language Model Evaluation Harness (the extra `lm-eval`)."""

from __future__ import annotations

import difflib
import importlib.util
import logging
import os
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ray
import torch
from yaml import YAMLError

from instructdiff_ray.config.run import Config
from instructdiff_ray.engine.device import require_gpu
from instructdiff_ray.errors import UserError, require
from instructdiff_ray.models.model import Model
from instructdiff_ray.pool.tasks import results as results_of
from instructdiff_ray.progress import Progress
from instructdiff_ray.resources import machines_for
from instructdiff_ray.scoring.placement import gpus_of_one
from instructdiff_ray.storage.artifacts import Storage, make_key

VERSION = 1  # of what is taken from the results
CPU_BATCH = 8


@cache
def check_tasks(tasks: tuple[str, ...]) -> None:
    """Raises UserError where the harness is not installed, or knows no such task and finds no such
    file."""
    require(
        importlib.util.find_spec("lm_eval") is not None,
        "evaluate.tasks needs the Language Model Evaluation Harness: pip install 'lm-eval[hf]'",
    )
    from lm_eval.tasks import TaskManager

    known = TaskManager().all_tasks
    for task in tasks:
        if task in known or Path(task).is_file():
            continue
        near = difflib.get_close_matches(task, known, n=3)
        advice = f"did you mean {' or '.join(near)}?" if near else "`lm-eval ls tasks` shows all"
        raise UserError(f"evaluate.tasks: {task} is no task of lm-eval and no YAML file; {advice}")


def benchmark(
    config: Config, model: Model, storage: Storage, progress: Progress
) -> dict[str, float]:
    """Every metric of `evaluate.tasks` under the model, by task and metric.

    The results of a task that lm-eval knows are an artifact; those of a file, which may go by other
    files, are not. Raises UserError where the harness can't run a task.
    """
    results: dict[str, float] = {}
    for task in config.evaluate.tasks:
        running = f"{task}: {model.trained}"
        if Path(task).is_file():
            progress.say(running)
            results.update(_run_remotely(config, model, os.path.abspath(task), progress))
            continue
        inputs = {
            "version": VERSION,
            "lm_eval": version("lm_eval"),
            "task": task,
            "model": model.identity,
            "precision": config.cluster.precision,
            "chat": config.template.chat,
        }
        artifact = storage.artifact("benchmarks", make_key(**inputs))
        with artifact.lock(progress.say) as finished:
            if finished is None:
                progress.say(running)
                metrics_of_task = _run_remotely(config, model, task, progress)
                with artifact.writer() as writer:
                    finished = writer.finish(inputs, metrics_of_task)
        results.update(finished.info)
    return results


def _run_remotely(config: Config, model: Model, task: str, progress: Progress) -> dict[str, float]:
    gpus = gpus_of_one(config.cluster, [model], config.calibrate.max_length)
    # A machine whose memory ends would get the same task again, without end.
    run = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=0, label_selector=machines_for(gpus))(
        run_task
    )
    arguments = (model, task, config.cluster.precision, gpus, config.template.chat)
    with progress.watched():
        (outcome,) = results_of([run.remote(*arguments)])
    return dict(outcome)


def run_task(model: Model, task: str, precision: str, gpus: float, chat: bool) -> dict[str, float]:
    """The task's metrics; where it stands for several tasks, those of each.

    gpus: of this process.
    """
    from datasets.exceptions import DatasetsError
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    require(
        not os.path.isabs(task) or os.path.isfile(task),
        f"evaluate.tasks: {task} is not on the machine that runs it; put it where all machines are"
        " shown it",
    )
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    if gpus:
        require_gpu(precision)
    else:  # Ray gives one thread for the CPU that is reserved
        torch.set_num_threads(os.cpu_count() or 1)
    model.check()
    loaded = model.load(precision, torch.device("cuda" if gpus else "cpu"), spread=gpus > 1)
    wrapped = HFLM(
        loaded, tokenizer=model.load_tokenizer(), batch_size="auto" if gpus else CPU_BATCH
    )
    try:
        results = simple_evaluate(
            wrapped,
            tasks=[task],
            apply_chat_template=chat,
            log_samples=False,
            bootstrap_iters=0,
        )
    # No network, no such data, a package that the task wants, a mistake in the user's file.
    except (OSError, ValueError, LookupError, ImportError, YAMLError, DatasetsError) as error:
        line = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"evaluate.tasks: lm-eval can't run {task}: {line}") from error
    assert results is not None
    return metrics(results, task)


def metrics(results: Mapping[str, Any], task: str) -> dict[str, float]:
    """`task metric` → value, from what the harness returns: of the task or group of that name, or
    else of all tasks that the name or file stands for. Raises UserError where there is none."""
    rows = results["results"]
    values = _metrics_of(task, rows.get(task, {}))
    if not values:
        for name, row in rows.items():
            values.update(_metrics_of(name, row))
    require(bool(values), f"evaluate.tasks: {task} gives no metric that is a number")
    return values


def _metrics_of(name: str, row: Mapping[str, Any]) -> dict[str, float]:
    values = {}
    for key, value in row.items():
        metric, comma, filtered = key.partition(",")
        if comma and not metric.endswith("_stderr") and isinstance(value, float):
            suffix = "" if filtered == "none" else f" ({filtered})"
            values[f"{name} {metric}{suffix}"] = value
    return values
