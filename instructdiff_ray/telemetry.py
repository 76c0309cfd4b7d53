"""What Prometheus is told of a run, by way of Ray's metrics (docs/cluster.md, "Watching").

Each process sends what was added since it last did to the metrics agent of its machine, every ten
seconds and once more when it ends, and the agent keeps the sums for as long as the machine's Ray
runs. So only a process that is killed loses something, its last seconds. What must agree with
`summary.json` is therefore counted by the driver, from the receipts that also make the summary; an
actor counts what it alone knows.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

# Imported where something is counted: not every process that knows these names has a Ray.
if TYPE_CHECKING:
    from ray.util import metrics

JOB = "JobId"  # as in Ray's own metrics


@dataclass(frozen=True)
class RunCounter:
    """What only grows, by job of Ray and by `labels`; Ray puts `ray_` before the name."""

    name: str
    description: str
    labels: tuple[str, ...] = ()

    def add(self, value: float, **labels: str) -> None:
        """Count in `value`, which is 0 or more; without a Ray nothing happens."""
        if value and (job := job_id()):
            _ray_counter(self).inc(value, {JOB: job, **labels})


@dataclass(frozen=True)
class RunGauge:
    """What stands at a value, that is to be set again at least every twenty seconds: Ray forgets
    older ones."""

    name: str
    description: str
    labels: tuple[str, ...] = ()

    def set(self, value: float, **labels: str) -> None:
        """Stand at `value`; without a Ray nothing happens."""
        if job := job_id():
            _ray_gauge(self).set(value, {JOB: job, **labels})


def job_id() -> str | None:
    """The id of this process's job in Ray, or None where it has joined no Ray."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return None
    job: str = ray.get_runtime_context().get_job_id()
    return job


@cache
def _ray_counter(counter: RunCounter) -> metrics.Counter:
    from ray.util.metrics import Counter

    return Counter(counter.name, counter.description, (JOB, *counter.labels))


@cache
def _ray_gauge(gauge: RunGauge) -> metrics.Gauge:
    from ray.util.metrics import Gauge

    return Gauge(gauge.name, gauge.description, (JOB, *gauge.labels))


SCORED_SAMPLES = RunCounter(
    "instructdiff_scored_samples_total",
    "Samples scored, once for each model.",
    ("model",),
)
SCORED_TOKENS = RunCounter(
    "instructdiff_scored_tokens_total",
    "Tokens of prompts and responses in forward passes, once for each model.",
    ("model",),
)
REJECTED_SAMPLES = RunCounter(
    "instructdiff_rejected_samples_total",
    "Rows that ingest rejected (without a model), and samples that a model could not score.",
    ("stage", "model", "reason"),
)
SCORER_SECONDS = RunCounter(
    "instructdiff_scorer_seconds_total",
    "Seconds of all scorers in forward passes (state busy), and between blocks (state waiting).",
    ("state",),
)
SCORER_RETRIES = RunCounter(
    "instructdiff_scorer_retries_total",
    "Blocks, samples and loads that were begun again because their scorer had died.",
)
MODEL_LOAD_SECONDS = RunCounter(
    "instructdiff_model_load_seconds_total",
    "Seconds in which scorers and trainers loaded weights, a download included.",
    ("path",),
)
STAGE_ITEMS = RunCounter(
    "instructdiff_stage_items_total",
    "What the stages of a command have done, each in its own unit.",
    ("stage", "unit"),
)
STAGE_SECONDS = RunCounter(
    "instructdiff_stage_seconds_total",
    "Seconds of the stages of a command.",
    ("stage",),
)
STAGE_PROGRESS = RunGauge(
    "instructdiff_stage_progress_ratio",
    "Share of the work of a stage under way that is done, where its amount is known.",
    ("stage",),
)
RUN_INFO = RunGauge(
    "instructdiff_run_info",
    "1 while a command runs: which, and in which folder.",
    ("command", "run_dir"),
)
