"""A device that holds no training, on purpose."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from instructdiff_ray.config.cluster import TrainResources
from instructdiff_ray.training.task import TrainTask

SMALL_DEVICE = 2**20


class OnSmallDevices(TrainTask):
    """A task whose workers find a device of SMALL_DEVICE bytes each; who looks leaves a file
    `looked-*` in the scratch folder. (In a module that workers can import.)"""

    def __setstate__(self, state: dict[str, Any]) -> None:
        from instructdiff_ray.training import worker

        self.__dict__.update(state)

        def device_memory(resources: TrainResources) -> int:
            Path(self.scratch.path, f"looked-{os.getpid()}").touch()
            return SMALL_DEVICE

        worker.device_memory = device_memory  # in this process, which is a worker's
