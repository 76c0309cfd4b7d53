"""What `jobs/run.py` with the same settings would cost: `python jobs/plan.py data.path=… …`.

Rows, tokens, trainings and passes over the pool, hours, machines, with `plan.price_per_hour` a
price, the memory of a training on GPUs, and what of it is in storage already. It runs no model,
starts no Ray and writes nothing. Where the pool was not read yet, some rows of it are.
"""

from _launch import launch

from instructdiff_ray.context import RunContext
from instructdiff_ray.forecast.cost import known_rates
from instructdiff_ray.forecast.memory import training_memory
from instructdiff_ray.forecast.work import plan_run
from instructdiff_ray.results.costs import plan_text


def main(context: RunContext) -> None:
    plan = plan_run(context)
    rates, memory = known_rates(context, plan), training_memory(context, plan)
    context.progress.say(plan_text(context, plan, rates, memory))


if __name__ == "__main__":
    launch(main, computes=False)
