"""What determines the tokens of a sample; ingest, calibration and scoring share one."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

from instructdiff_ray.config import Config, TemplateConfig
from instructdiff_ray.errors import UserError
from instructdiff_ray.models import Model
from instructdiff_ray.template import Encoder


@dataclass(frozen=True)
class Rendering:
    """A model's tokenizer, a template, and how many tokens of a sample are taken at most.

    truncate: cut a longer sample off instead of rejecting it.
    """

    model: Model
    template: TemplateConfig
    max_length: int
    truncate: bool

    @classmethod
    def of(cls, config: Config, model: Model) -> Rendering:
        """The configured rendering; a model that sees fewer positions lowers the maximum length."""
        limits = (config.calibrate.max_length, model.max_length)
        max_length = min(limit for limit in limits if limit is not None)
        return cls(model, config.template, max_length, config.data.over_long == "truncate")

    def inputs(self) -> dict[str, Any]:
        """For keys."""
        return {
            "tokenizer": self.model.identity,
            "template": asdict(self.template),
            "max_length": self.max_length,
            "truncate": self.truncate,
        }

    def check(self) -> None:
        """Raises UserError where the tokenizer can't do what the template asks."""
        if self.template.chat and not self.encoder().tokenizer.chat_template:
            raise UserError(
                f"template={self.template.name} needs a chat template and the tokenizer of"
                f" {self.model.path} has none; use template=alpaca"
            )

    def encoder(self) -> Encoder:
        """Loaded once a process: Ray makes a new task object for every block."""
        return _encoder(self)


@lru_cache(maxsize=4)
def _encoder(rendering: Rendering) -> Encoder:
    return Encoder(
        rendering.model.load_tokenizer(),
        rendering.template,
        rendering.max_length,
        rendering.truncate,
    )
