"""What `instructdiff run` with the same settings would cost, before anything starts.

Rows, tokens, trainings and passes over the pool, hours, machines, with `plan.price_per_hour` a
price, the memory of a training on GPUs, and what of it is in storage already. It runs no model,
starts no Ray and writes nothing. Where the pool was not read yet, some rows of it are.

Example:
  instructdiff plan data.path=pool.jsonl domain=math model=qwen2.5-7b cluster=gpu_node
"""

from __future__ import annotations

from collections.abc import Sequence

from instructdiff_ray.commands.launch import launch
from instructdiff_ray.context import RunContext
from instructdiff_ray.forecast.cost import known_rates
from instructdiff_ray.forecast.memory import training_memory
from instructdiff_ray.forecast.work import plan_run
from instructdiff_ray.results.costs import plan_text


def stage(context: RunContext) -> None:
    plan = plan_run(context)
    rates, memory = known_rates(context, plan), training_memory(context, plan)
    context.progress.say(plan_text(context, plan, rates, memory))


def main(arguments: Sequence[str]) -> None:
    launch("plan", stage, arguments, computes=False)
