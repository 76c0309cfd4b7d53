"""One base model of the world, and all that is done with it."""

from __future__ import annotations

import copy
import math
import random
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from benchmarks.world.arms import ARMS, FULL, ORACLE, REPEATS, WorldPool
from benchmarks.world.model import SIZES, Schedule, exact_match, new_model, train
from benchmarks.world.population import Sample, make_pool
from benchmarks.world.tasks import SKILLS, Task, make_task, pretraining_tasks
from instructdiff_ray.pool.sampling import draws_below, repeat_seed, sample_warmup
from instructdiff_ray.storage.filesystem import Folder

POOL = 3000
HELD_OUT = 100  # tasks of each skill
PRETRAINING_SAMPLES = 50_000
PRETRAIN = {
    "small": Schedule(4e-3, 64),
    "medium": Schedule(3e-3, 64),
    "large": Schedule(2e-3, 64),
}
WARMUP_RATIO = 0.1
CALIBRATE = Schedule(5e-4, 16, epochs=3)
# In fine-tuning a step sees about as many response tokens whatever the arm selects, so that arms of
# as many tokens take as many steps.
FINETUNE_RATE, FINETUNE_EPOCHS, TOKENS_PER_STEP = 5e-4, 6, 112


@dataclass(frozen=True)
class Cell:
    """A base model and all that is done with it.

    settings: shares of noise, and the ratios that are tried with each.
    pool, pretraining: how many samples each has.
    """

    size: str
    seed: int
    settings: tuple[tuple[float, tuple[float, ...]], ...]
    pool: int = POOL
    pretraining: int = PRETRAINING_SAMPLES


def run_cell(cell: Cell) -> list[dict[str, Any]]:
    """A result for every model that was trained, the base model's first."""
    torch.set_num_threads(1)
    # No two cells have a task or a pool in common, so their results are independent.
    began, draw = time.monotonic(), np.random.default_rng([cell.seed, [*SIZES].index(cell.size)])
    tasks_seed, held_seed, pool_seed = (int(x) for x in draw.integers(2**32, size=3))
    base = pretrained(cell, tasks_seed)
    held_out = held_out_tasks(held_seed)
    asked = {task.prompt for tasks in held_out.values() for task in tasks}
    about = {"size": cell.size, "seed": cell.seed}
    results = [{**about, "arm": "untrained", "accuracy": accuracy(base, held_out)}]
    for noise, ratios in cell.settings:
        samples = make_pool(cell.pool, noise, pool_seed, asked)
        with tempfile.TemporaryDirectory() as path:
            world = WorldPool(samples, Folder(path))
            for arm, ratio, ids in selections(world, base, ratios, cell.seed):
                tokens = sum(len(samples[i].response) for i in ids)
                batch = max(1, round(TOKENS_PER_STEP * len(ids) / tokens))
                schedule = Schedule(FINETUNE_RATE, batch, FINETUNE_EPOCHS)
                model = finetuned(base, samples, ids, schedule, cell.seed)
                results.append(
                    {
                        **about,
                        "noise": noise,
                        "ratio": ratio,
                        "arm": arm,
                        "samples": len(ids),
                        "tokens": tokens,
                        "steps": FINETUNE_EPOCHS * math.ceil(len(ids) / batch),
                        "kinds": dict(Counter(samples[i].kind for i in ids)),
                        "accuracy": accuracy(model, held_out),
                    }
                )
    seconds = time.monotonic() - began
    print(f"{cell.size}, seed {cell.seed}: {len(results)} models in {seconds:.0f} s", flush=True)
    return results


def selections(
    world: WorldPool, base: PreTrainedModel, ratios: tuple[float, ...], seed: int
) -> list[tuple[str, float, list[str]]]:
    """Arm, ratio and ids of all that is to be trained on."""
    world.score(base)
    for repeat in range(REPEATS):
        calibration = repeat_seed(seed, repeat)
        ids = [*world.pool.ids()]
        warmup = sample_warmup(len(ids), partial(draws_below, ids, calibration), WARMUP_RATIO)
        model = finetuned(base, world.samples, warmup, CALIBRATE, calibration)
        world.score_calibrated(model, repeat)
    chosen = [(FULL, 1.0, [*world.samples])]
    for ratio in ratios:
        chosen.append((ORACLE, ratio, world.oracle(ratio, seed)))
        for name, arm in ARMS.items():
            if arm.rounds == 1:
                chosen.append((name, ratio, world.select(arm, ratio, seed)))
    # Last, for they leave other scores.
    for ratio in ratios:
        for name, arm in ARMS.items():
            if arm.rounds > 1:
                (first,) = (ids for other, r, ids in chosen if (other, r) == (arm.strategy, ratio))
                world.score_calibrated(finetuned(base, world.samples, first, CALIBRATE, seed))
                chosen.append((name, ratio, world.select(arm, ratio, seed)))
    return chosen


def pretrained(cell: Cell, tasks_seed: int) -> PreTrainedModel:
    """The base model."""
    tasks = pretraining_tasks(cell.pretraining, random.Random(tasks_seed))
    pairs = [(task.prompt, task.answer) for task in tasks]
    return train(
        new_model(cell.size, cell.seed), pairs, PRETRAIN[cell.size], cell.seed, on_prompts=True
    )


def finetuned(
    base: PreTrainedModel,
    samples: Mapping[str, Sample],
    ids: list[str],
    schedule: Schedule,
    seed: int,
) -> PreTrainedModel:
    """A copy of the base model, trained on these samples."""
    pairs = [(samples[i].prompt, samples[i].response) for i in ids]
    return train(copy.deepcopy(base), pairs, schedule, seed)


def held_out_tasks(seed: int) -> dict[str, list[Task]]:
    """Tasks of each skill."""
    draw = random.Random(seed)
    return {skill: [make_task(skill, draw) for _ in range(HELD_OUT)] for skill in SKILLS}


def accuracy(model: PreTrainedModel, tasks: dict[str, list[Task]]) -> dict[str, float]:
    """The share of right answers, by skill."""
    return {skill: float(exact_match(model, asked).mean()) for skill, asked in tasks.items()}
