"""How many models a scorer holds, and on how many GPUs: as their memory allows."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

import ray
import torch

from instructdiff_ray.config.cluster import ClusterConfig, ScoreResources
from instructdiff_ray.engine.device import UNLIKE, model_unlike, require_gpu
from instructdiff_ray.engine.memory import GIB, USABLE, ScoringMemory
from instructdiff_ray.errors import UserError
from instructdiff_ray.models.model import Model
from instructdiff_ray.pool.tasks import results

# Copies of weights that a scorer holds at most: those of a base and a calibrated model. Adapters
# come on top, for they are small.
MOST_MODELS = 2
# A scorer is to have room for a pass of so many tokens, or of one sample of the longest.
PASS_TOKENS = 4096


@dataclass(frozen=True)
class Placement:
    """models: whose weights a scorer holds at most; gpus: that it has, or its share of one.

    note: for people, where it holds fewer models than it could share batches with, or has more than
    one GPU.
    """

    models: int
    gpus: float
    note: str | None = None


def place(cluster: ClusterConfig, models: Sequence[Model], max_length: int) -> Placement:
    """The placement of scorers of these models: what `cluster.score` says, and what it leaves open
    as it fits. On processors nothing is looked at.

    max_length: of a sample, in tokens. Raises UserError where nothing fits, or torch can't use the
    GPU.
    """
    resources = cluster.score
    by_path = {model.path: model for model in models}
    wanted = min(MOST_MODELS, len(by_path))
    gpus = resources.gpus_per_actor
    if gpus == 0 or gpus is not None and resources.models_per_actor is not None:
        return Placement(resources.models_per_actor or wanted, gpus)
    measure = ray.remote(num_cpus=1, num_gpus=min(1, gpus or 1), max_calls=1)(measure_memory)
    tokens = max(PASS_TOKENS, max_length)
    measured: tuple[ScoringMemory, float] | None
    (measured,) = results([measure.remote(list(by_path.values()), cluster.precision, tokens)])
    if measured is None:
        return Placement(resources.models_per_actor or wanted, gpus or 1)
    needed, device = measured
    on_a_machine = max(node["Resources"].get("GPU", 0) for node in ray.nodes() if node["Alive"])
    return choose(resources, wanted, needed, device, int(on_a_machine))


def gpus_of_one(cluster: ClusterConfig, models: Sequence[Model], max_length: int) -> float:
    """The GPUs of a process that holds one of these models at a time."""
    one = replace(cluster, score=replace(cluster.score, models_per_actor=1))
    return place(one, models, max_length).gpus


def choose(
    resources: ScoreResources,
    wanted: int,
    needed: ScoringMemory,
    device: float,
    gpus_of_a_machine: int,
) -> Placement:
    """The first placement that fits. One model a pass comes before layers on several GPUs: it
    costs a second pass, and no GPU waits for another.

    wanted: models that could share their batches; needed: by the largest of them; device: bytes
    that a GPU can be counted on for. Raises UserError where nothing fits.
    """
    given = resources.gpus_per_actor
    counts = [resources.models_per_actor] if resources.models_per_actor else range(wanted, 0, -1)
    numbers = [given] if given else [2**n for n in range(gpus_of_a_machine.bit_length())]
    least = counts[-1]
    candidates = [*((count, numbers[0]) for count in counts), *((least, n) for n in numbers[1:])]
    for models, gpus in candidates:
        if _fits(needed, device, models, gpus):
            together = resources.models_per_actor or wanted
            return Placement(models, gpus, _note(models, gpus, together, needed, device))
    raise UserError(_refusal(least, numbers[-1], given is not None, needed, device))


def measure_memory(
    models: Sequence[Model], precision: str, tokens: int
) -> tuple[ScoringMemory, float] | None:
    """What the largest of the models needs for passes of so many tokens, and what this process's
    GPU can be counted on for; None where a model can't be run without numbers. Raises UserError
    where torch can't use the GPU."""
    require_gpu(precision)
    if any(model.trust_remote_code for model in models):
        return None
    try:
        each = [ScoringMemory.of(m.load_config(), precision, tokens, "cuda") for m in models]
    except UNLIKE as error:
        if not model_unlike(error):
            raise
        print(f"the memory of scoring is not foretold: {error}", file=sys.stderr, flush=True)
        return None
    device = USABLE * torch.cuda.get_device_properties(0).total_memory
    return max(each, key=lambda memory: memory.weights), device


def _fits(needed: ScoringMemory, device: float, models: int, gpus: float) -> bool:
    return needed.on_each(models, max(1, int(gpus))) <= min(1.0, gpus) * device


def _note(
    models: int, gpus: float, wanted: int, needed: ScoringMemory, device: float
) -> str | None:
    weights, room = needed.weights / GIB, min(1.0, gpus) * device / GIB
    if gpus > 1:
        return (
            f"each model is split over {gpus:g} GPUs: its weights take {weights:.1f} GiB, and"
            f" {room:.1f} of a GPU's memory can be used"
        )
    if models < wanted:
        return (
            f"one model a pass: {wanted} take {wanted * weights:.1f} GiB, and"
            f" {room:.1f} of a GPU's memory can be used"
        )
    return None


def _refusal(models: int, gpus: float, given: bool, needed: ScoringMemory, device: float) -> str:
    sufficient = (n for n in (1, 2, 4, 8, 16) if n > gpus and _fits(needed, device, models, n))
    fitting = next(sufficient, None)
    if fitting and given:
        advice = f"set cluster.score.gpus_per_actor={fitting}"
    elif fitting:
        advice = f"take machines with {fitting} such GPUs"
    elif models > 1 and _fits(needed, device, 1, gpus):
        advice = "set cluster.score.models_per_actor=1"
    else:
        advice = "take larger GPUs, or cluster.precision=bf16 where it is fp32"
    return (
        f"a scorer needs {models * needed.weights / GIB:.1f} GiB for weights and"
        f" {needed.forward / GIB:.1f} for a pass, and has {gpus:g} GPU{'s' * (gpus > 1)} with"
        f" {device / GIB:.1f} GiB each to be used; {advice}"
    )
