"""What a run leaves besides its own files: `output`."""

from __future__ import annotations

from dataclasses import dataclass, field

from instructdiff_ray.errors import require

TRL, LLAMA_FACTORY, AXOLOTL, ALPACA = FORMATS = ("trl", "llamafactory", "axolotl", "alpaca")


@dataclass
class OutputConfig:
    """In which forms the selection is written once more, beside its untouched rows.

    formats: names of trainers, which read chat messages, or `alpaca`, for its columns.
    """

    formats: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in self.formats:
            require(
                name in FORMATS,
                f"output.formats={name} is not known; use some of {', '.join(FORMATS)}",
            )
