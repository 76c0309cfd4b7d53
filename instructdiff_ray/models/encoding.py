"""What determines the tokens of a sample: ingest, calibration and scoring share it.

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

# Of how a sample becomes tokens; raise it when the same sample gives others, and whatever was
# computed from tokens is computed anew.
VERSION = 1

LIKELIHOOD = ("nll", "entropy")
RATING = ("rating",)


@dataclass(frozen=True)
class EncoderSpec:
    """How a sample becomes tokens: a tokenizer, a template, and a maximum length.

    model: whose tokenizer it is.
    max_length: in tokens.
    truncate: cut a longer sample off instead of rejecting it.
    form: of the sample: `whole`, `response` (its response alone), `ending` (whole, and nothing
        scored but its end), or `rating` (the question for its rating, with this `wording`).
    """

    model: Model
    template: TemplateConfig
    max_length: int
    truncate: bool
    form: str = "whole"
    wording: int = 0

    @classmethod
    def of(cls, config: Config, model: Model) -> EncoderSpec:
        """The configured encoding; a model that sees fewer positions lowers the maximum length."""
        limits = (config.calibrate.max_length, model.max_length)
        max_length = min(limit for limit in limits if limit is not None)
        return cls(model, config.template, max_length, config.data.over_long == "truncate")

    def key_inputs(self) -> dict[str, Any]:
        """What it adds to the key of an artifact, as JSON values."""
        template = asdict(self.template)
        if self.form != "response":  # the only form that uses it
            del template["response_prompt"]
        return {
            # Keys made before encodings had a version are those of the first.
            **({"encoding_version": VERSION} if VERSION > 1 else {}),
            "tokenizer": self.model.identity,
            "template": template,
            "max_length": self.max_length,
            "truncate": self.truncate,
            "form": self.form,
            "wording": self.wording,
        }

    @property
    def measures(self) -> tuple[str, ...]:
        """Names of the scores that a model gives a sample in this form."""
        return RATING if self.form == "rating" else LIKELIHOOD

    def alone(self) -> EncoderSpec:
        """The response without its prompt."""
        return replace(self, form="response")

    def ending(self) -> EncoderSpec:
        """The whole sample, of which the end behind the response is scored."""
        return replace(self, form="ending")

    @classmethod
    def for_rating(cls, model: Model, wording: int) -> EncoderSpec:
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
        """Of all forms but ratings; loaded once a process, for Ray makes a new task object for
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
def _encoder(spec: EncoderSpec) -> Encoder:
    return Encoder(
        _tokenizer(spec.model),
        spec.template,
        spec.max_length,
        spec.truncate,
        spec.form,
    )


@lru_cache(maxsize=8)
def _rating_encoder(spec: EncoderSpec) -> RatingEncoder:
    return RatingEncoder(_tokenizer(spec.model), spec.wording, spec.max_length)


@lru_cache(maxsize=2)
def _tokenizer(model: Model) -> PreTrainedTokenizerBase:
    return model.load_tokenizer()
