"""Ray for one command: a cluster that is joined, or processes on this machine."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import ray
import ray.data
from ray.util.annotations import RayDeprecationWarning
from transformers.utils.logging import disable_progress_bar

from instructdiff_ray.config.cluster import ClusterConfig
from instructdiff_ray.errors import UserError
from instructdiff_ray.resources import SINGLE_MACHINE


def start_ray(cluster: ClusterConfig) -> None:
    """Join the cluster that is named or that this process runs in; else start one here, once."""
    # A pipeline that can't go on is an error in the end.
    data_context = ray.data.DataContext.get_current()
    data_context.execution_no_progress_timeout_s = cluster.patience_hours * 3600
    if ray.is_initialized():
        _note_single_machine(_started_here())
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
    _note_single_machine(address is None)
    # Kept quiet: the run's own lines are what a person reads. Ray's logs have all the rest.
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler) and not isinstance(
            handler, logging.FileHandler
        ):
            handler.setLevel(logging.CRITICAL)


def _started_here() -> bool:
    """Whether the Ray that runs was started by this process, and not joined: by the first use of a
    Dataset, say."""
    node = ray._private.worker._global_node  # of which Ray's public API says nothing
    return node is not None and node.head


def _note_single_machine(single: bool) -> None:
    ray.data.DataContext.get_current().set_config(SINGLE_MACHINE, single)


def quiet_libraries() -> None:
    """Requests, retries and progress bars of the libraries are not our lines."""
    for library in ("huggingface_hub", "httpx2"):
        logging.getLogger(library).setLevel(logging.ERROR)
    disable_progress_bar()


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
