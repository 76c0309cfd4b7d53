"""What a training will hold of each device's memory, as far as the configuration and the pool tell;
training/memory.py counts it."""

from __future__ import annotations

import warnings

from instructdiff_ray.context import RunContext
from instructdiff_ray.forecast.work import Plan


def training_memory(context: RunContext, plan: Plan) -> str | None:
    """The line that says so; None where nothing is trained, or not on GPUs, or where a model can't
    be run without numbers."""
    # Here, for it takes seconds to import what trains.
    from instructdiff_ray.engine.device import UNLIKE, model_unlike
    from instructdiff_ray.engine.memory import GIB
    from instructdiff_ray.training.arguments import micro_batch_size
    from instructdiff_ray.training.batches import collate_packed
    from instructdiff_ray.training.memory import MemoryModel, Pass

    config, resources = context.config, context.config.cluster.train
    trains = any(work.stage == "calibrate" for work in plan.work)
    if not trains or not resources.gpus_per_worker or context.base.trust_remote_code:
        return None
    longest = 1 + max(size.longest for size in plan.sizes.values())
    response = 1 + max(size.longest_response for size in plan.sizes.values())
    per_worker = config.calibrate.global_batch_size // resources.workers
    samples = micro_batch_size(per_worker, longest, resources.tokens_per_device)
    model = MemoryModel(context.base.load_config(), config.cluster.precision)
    # Whether it is sharded is decided on the device, where the settings leave it open.
    shards = {True: [resources.workers], False: [1], None: [1, resources.workers]}[resources.fsdp]
    if config.calibrate.optimizer != "adamw":  # which is never sharded
        shards = [1]
    peaks = {}
    try:
        warnings.simplefilter("ignore", FutureWarning)  # transformers', of itself
        for count in dict.fromkeys(shards):
            accumulates = per_worker > samples or (resources.workers > 1 and count == 1)
            one_pass = Pass(
                samples, longest, samples * response, collate_packed, count, accumulates
            )
            peaks[count] = model.training(config.calibrate, one_pass).peak / GIB
    except UNLIKE as error:
        if not model_unlike(error):
            raise
        return None
    ways = (
        f"{peak:.1f} GiB" + (f" where it is sharded over {count}" if count > 1 else "")
        for count, peak in peaks.items()
    )
    return (
        f"training holds about {' or '.join(ways)} of each GPU, in passes of"
        f" {samples} × {longest:,} tokens at most"
    )
