"""What a run is expected to cost: `plan`. Nothing here changes a result, and none is in a key."""

from __future__ import annotations

from dataclasses import dataclass

from instructdiff_ray.errors import require


@dataclass
class PlanConfig:
    """What `instructdiff plan` can't know by itself.

    tokens_per_second: that one scorer reaches, counted once for each model; None: as scoring was
        last measured in this storage.
    price_per_hour: of one machine, in whatever currency; None says nothing of money.
    gpus_per_machine: how many GPUs such a machine has.
    """

    tokens_per_second: float | None = None
    price_per_hour: float | None = None
    gpus_per_machine: int = 8

    def __post_init__(self) -> None:
        speed, price = self.tokens_per_second, self.price_per_hour
        require(speed is None or speed > 0, f"plan.tokens_per_second={speed} must be above 0")
        require(price is None or price >= 0, f"plan.price_per_hour={price} must be 0 or more")
        require(
            self.gpus_per_machine >= 1,
            f"plan.gpus_per_machine={self.gpus_per_machine} must be 1 or more",
        )
