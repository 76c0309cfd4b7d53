"""The edge: Hydra's configuration in, the library's out; a user's mistake ends in one line."""

from __future__ import annotations

import os
import sys

# Python puts this folder first on its path, where select.py would hide Python's own `select`.
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[0] = ROOT

import difflib
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import hydra
import ray
import ray.data
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from ray.exceptions import RayError
from ray.util.annotations import RayDeprecationWarning
from transformers.utils.logging import disable_progress_bar

from instructdiff_ray.autoscaler import waiting_line
from instructdiff_ray.config.cluster import ClusterConfig
from instructdiff_ray.config.run import Config
from instructdiff_ray.config.selection import SelectConfig
from instructdiff_ray.config.training import CalibrateConfig
from instructdiff_ray.context import RunContext, check_settings, list_data, prepare, run_name
from instructdiff_ray.demo.artifacts import DEMO, demo_model, demo_pool
from instructdiff_ray.errors import UserError, require, user_error_in
from instructdiff_ray.evaluation.lm_eval import check_tasks
from instructdiff_ray.models.model import find_model
from instructdiff_ray.pool.hub_data import pin_paths
from instructdiff_ray.progress import Progress
from instructdiff_ray.resources import SINGLE_MACHINE, missing_gpus
from instructdiff_ray.results.console import sweep_table
from instructdiff_ray.results.watch import watched
from instructdiff_ray.storage.artifacts import Storage
from instructdiff_ray.storage.filesystem import absolute, is_uri, join

SWEEP = run_name()
CONF = os.path.join(ROOT, "conf")


Stage = Callable[[RunContext], dict[str, Any] | None]


def launch(stage: Stage, computes: bool = True) -> None:
    """Run one stage, or a sweep over it (`-m`), as the command line says; then exit.

    stage: may give the summary of what it selected; computes: whether it needs Ray. Exit status 0
    only when all of it is complete.
    """
    # Errors come to us whole, and we print them; Hydra's own printing takes many lines.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    # Requests, retries and progress bars of the libraries are not our lines.
    for library in ("huggingface_hub", "httpx2"):
        logging.getLogger(library).setLevel(logging.ERROR)
    disable_progress_bar()
    ConfigStore.instance().store(name="schema", node=Config)
    failures: list[str] = []
    points: list[tuple[dict[str, str], dict[str, Any] | None]] = []

    def task(settings: DictConfig) -> None:
        chosen = dict(o.partition("=")[::2] for o in HydraConfig.get().overrides.task)
        points.append((chosen, None))
        try:
            points[-1] = (chosen, run_stage(stage, settings, computes))
        except UserError as error:
            failures.append(_say(str(error)))
        except OmegaConfBaseException as error:
            failures.append(_say(_one_line(error)))
        except (OSError, MemoryError, RayError) as error:  # this machine's, or Ray's
            user_error = user_error_in(error)
            if user_error is None:
                raise
            failures.append(_say(str(user_error)))

    # The demo is what runs when neither data nor model nor domain is named: who names one of them
    # and forgets another should hear of it.
    names = {argument.lstrip("+~").split("=")[0] for argument in sys.argv[1:]}
    named = bool(names & {"data.path", "model", "model.base", "domain"})
    main = hydra.main(
        version_base="1.3", config_path=CONF, config_name="config" if named else "demo"
    )
    try:
        main(task)()
    except (HydraException, OmegaConfBaseException) as error:
        failures.append(_say(_one_line(error)))
    except KeyboardInterrupt:
        failures.append(_say("interrupted; the same command goes on where it stopped"))
    if len(points) > 1 and any(summary for _, summary in points):
        print(f"\nall runs of the sweep\n{sweep_table(points)}", flush=True)
    sys.exit(1 if failures else 0)


def run_stage(stage: Stage, settings: DictConfig, computes: bool) -> dict[str, Any] | None:
    config, progress = build_config(settings), Progress(why_idle=waiting_line if computes else None)
    if tasks := config.evaluate.tasks:
        check_tasks(tuple(tasks))
    if not computes:
        return stage(prepare(_without_demo(config), progress))
    context = prepare(with_demo(config, progress), progress)
    with watched(context, os.path.basename(sys.argv[0])):
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


def build_config(settings: DictConfig) -> Config:
    """The library's configuration, checked; in a sweep each point has a run folder of its own."""
    # Merged into the dataclasses once more, for Hydra lets `+name=value` add to them.
    values = OmegaConf.to_container(settings, resolve=True)
    assert isinstance(values, dict)
    for domain_settings in values["domains"].values():
        _type_domain(domain_settings)
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), values))
    assert isinstance(config, Config)
    job = HydraConfig.get()
    if job.mode == RunMode.MULTIRUN:
        base = config.run_dir or join(config.storage, "runs", SWEEP)
        config = replace(config, run_dir=join(base, str(job.job.num)))
    if os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR"):
        _check_outlives_job(config)
    return config


def _type_domain(domain_settings: object) -> None:
    """Gives a domain's own settings the types of the common ones, in place; what is no setting is
    left for the configuration to refuse."""
    schemas = {"calibrate": CalibrateConfig, "select": SelectConfig}
    for part, given in domain_settings.items() if isinstance(domain_settings, dict) else ():
        if part in schemas and isinstance(given, dict):
            typed = OmegaConf.structured(schemas[part])
            for name in given.keys() & typed.keys():
                typed[name] = given[name]
                given[name] = typed[name]


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


def _one_line(error: Exception) -> str:
    """A message of Hydra or OmegaConf in one line that names the key, and the right one if near."""
    text = f"{error}\n{error.__cause__ or ''}"
    key = re.search(r"full_key: (\S+)", text)
    unknown = re.search(r"Could not override '([^']+)'|Key '([^']+)' not in", text)
    if unknown:
        name = unknown.group(1) or (key.group(1) if key else unknown.group(2))
        if name.startswith("domains."):
            return f"{name} is new to the configuration; put a + before it: +{name}=…"
        near = difflib.get_close_matches(name, _known_keys(), n=1)
        return f"{name} is not a setting" + (f"; did you mean {near[0]}?" if near else "")
    if choice := re.search(
        r"Could not find '(.+)/(.+)'\s+Available options in .+:((?:\n\t.+)+)", text
    ):
        group, name, options = choice.groups()
        return f"{group}={name} is not known; choose {', '.join(options.split())}"
    message = str(error.__cause__ or error).split("full_key:")[0]
    line = " ".join(message.split())
    return f"{key.group(1)}: {line}" if key else line


def _known_keys() -> list[str]:
    def walk(node: object, prefix: str) -> list[str]:
        if not isinstance(node, dict):
            return [prefix]
        return [key for name, child in node.items() for key in walk(child, f"{prefix}.{name}")]

    schema = OmegaConf.to_container(OmegaConf.structured(Config))
    return [key.lstrip(".") for key in walk(schema, "")]


def start_ray(cluster: ClusterConfig) -> None:
    """Join the cluster that is named or that this process runs in; else start one here, once."""
    # A pipeline that can't go on is an error in the end.
    data_context = ray.data.DataContext.get_current()
    data_context.execution_no_progress_timeout_s = cluster.patience_hours * 3600
    if ray.is_initialized():
        return
    address = cluster.joined
    # Logical CPUs: a scorer, a trainer and Ray's own readers share even a machine of two cores,
    # where actors that took every CPU would leave none to read and the job would wait for ever.
    local = None if address else max(4, os.cpu_count() or 1)
    # Errors of Ray's C++ side that are none go to the terminal too, and to its log files.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    if address:  # whose dashboard then knows of trainings, their attempts and workers
        os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "1")
    warnings.simplefilter("ignore", RayDeprecationWarning)
    try:
        with _silent_stderr():
            ray.init(
                address=address,
                num_cpus=local,
                include_dashboard=None if address else False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    except ConnectionError as error:
        raise UserError(f"no Ray cluster answers at {address}: {error}") from None
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.set_config(SINGLE_MACHINE, address is None)
    # Kept quiet: the run's own lines are what a person reads. Ray's logs have all the rest.
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler) and not isinstance(
            handler, logging.FileHandler
        ):
            handler.setLevel(logging.CRITICAL)


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Drops what C++ code writes to standard error (its log level, say); errors are raised."""
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
