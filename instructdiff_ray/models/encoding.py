"""What determines the tokens of a sample; ingest, calibration and scoring share one.

Some baselines look at a sample in another form: its response alone, or the question for its rating.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from instructdiff_ray.config.data import TemplateConfig
from instructdiff_ray.config.run import Config
from instructdiff_ray.errors import UserError
from instructdiff_ray.models.model import Model
from instructdiff_ray.models.rating import RatingEncoder
from instructdiff_ray.models.template import Encoded, Encoder
from instructdiff_ray.sample import Part, Reject

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LIKELIHOOD = ("nll", "entropy")
RATING = ("rating",)


@dataclass(frozen=True)
class Rendering:
    """A model's tokenizer, a template, and how many tokens of a sample are taken at most.

    truncate: cut a longer sample off instead of rejecting it.
    form: of the sample: `whole`, `response` (its response alone), or `rating` (the question for its
        rating, with this `wording`).
    """

    model: Model
    template: TemplateConfig
    max_length: int
    truncate: bool
    form: str = "whole"
    wording: int = 0

    @classmethod
    def of(cls, config: Config, model: Model) -> Rendering:
        """The configured rendering; a model that sees fewer positions lowers the maximum length."""
        limits = (config.calibrate.max_length, model.max_length)
        max_length = min(limit for limit in limits if limit is not None)
        return cls(model, config.template, max_length, config.data.over_long == "truncate")

    def inputs(self) -> dict[str, Any]:
        """For keys."""
        template = asdict(self.template)
        if self.form != "response":  # which alone reads it
            del template["response_prompt"]
        return {
            "tokenizer": self.model.identity,
            "template": template,
            "max_length": self.max_length,
            "truncate": self.truncate,
            "form": self.form,
            "wording": self.wording,
        }

    @property
    def measures(self) -> tuple[str, ...]:
        """What a model's pass over this rendering gives of a sample."""
        return RATING if self.form == "rating" else LIKELIHOOD

    def alone(self) -> Rendering:
        """The response without its prompt."""
        return replace(self, form="response")

    @classmethod
    def for_rating(cls, model: Model, wording: int) -> Rendering:
        """The question for a rating; it is cut nowhere, for its end is where the model answers."""
        limit = model.max_length or sys.maxsize
        return cls(model, TemplateConfig(), limit, truncate=False, form="rating", wording=wording)

    def rating_tokens(self) -> list[int] | None:
        """The tokens of the ratings; None where none is asked for."""
        return self.rating_encoder().rating_tokens if self.form == "rating" else None

    def check(self) -> None:
        """Raises UserError where the tokenizer can't do what the template asks."""
        if self.template.chat and not self.encoder().tokenizer.chat_template:
            raise UserError(
                f"template={self.template.name} needs a chat template and the tokenizer of"
                f" {self.model.path} has none; use template=alpaca"
            )

    def encoder(self) -> Encoder:
        """Of whole samples or responses; loaded once a process, for Ray makes a new task object for
        every block."""
        return _encoder(self)

    def rating_encoder(self) -> RatingEncoder:
        """Of questions for ratings."""
        return _rating_encoder(self)

    def encode(self, samples: Sequence[Sequence[Part]]) -> list[Encoded | Reject]:
        """Each sample in this form, or why it has none."""
        encoder = self.rating_encoder() if self.form == "rating" else self.encoder()
        return encoder.encode(samples)


# A task shows its samples in no more forms than SelectIT has wordings.
@lru_cache(maxsize=8)
def _encoder(rendering: Rendering) -> Encoder:
    return Encoder(
        _tokenizer(rendering.model),
        rendering.template,
        rendering.max_length,
        rendering.truncate,
        rendering.form == "response",
    )


@lru_cache(maxsize=8)
def _rating_encoder(rendering: Rendering) -> RatingEncoder:
    return RatingEncoder(_tokenizer(rendering.model), rendering.wording, rendering.max_length)


@lru_cache(maxsize=2)
def _tokenizer(model: Model) -> PreTrainedTokenizerBase:
    return model.load_tokenizer()
