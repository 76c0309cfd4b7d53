"""How SelectIT asks a model to rate a sample, and what it makes of the answer (Liu et al., 2024).

The model reads a rating line, the sample, and "The answer is:"; no text is generated: of the
distribution over its next token only the probabilities of the five ratings count. Of these,
q = p / Σp, and the authors' code takes a softmax of q once more, r = softmax(q). The token-level
score is

    S = b · (1/(K−1)) Σ_j |r_b − r_j|,    b = argmax r, counted from 1, and K = 5 ratings:

a high rating that the model is sure of. `strategies.py` has the other levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from instructdiff_ray.errors import UserError
from instructdiff_ray.models.template import Encoded
from instructdiff_ray.sample import Part, Reject

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

RATINGS = ("1", "2", "3", "4", "5")
# Five ways to ask for the same.
LINES = (
    "Rate from 1 to 5 how well the response follows the instruction; give the number alone.",
    "On a scale of 1 to 5, where 5 is best, how correct is the response to this instruction?",
    "Judge the response below: 1 if it fails the instruction, 5 if it meets it in full.",
    "How useful and accurate is this response? Answer with one number between 1 and 5.",
    "Grade the quality of this answer to the instruction with a score of 1, 2, 3, 4 or 5.",
)


class RatingEncoder:
    """Encodes samples as questions for their rating under one wording.

    The last token is a placeholder in the rating's place: it is what is scored, so its context is
    where the model answers.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, wording: int, max_length: int) -> None:
        self.tokenizer = tokenizer
        self.line = LINES[wording]
        self.max_length = max_length

    @cached_property
    def rating_tokens(self) -> list[int]:
        """The token of each rating where the question ends.

        Raises UserError where the tokenizer has no one token for each there.
        """
        question = self._question([Part("instruction", "x"), Part("response", "y")])
        start = self._encode([question])[0]
        answered = [self._encode([question + rating])[0] for rating in RATINGS]
        one_token_each = all(ids[:-1] == start for ids in answered)
        if not one_token_each or len({ids[-1] for ids in answered}) < len(RATINGS):
            raise UserError(
                f"the tokenizer of {self.tokenizer.name_or_path} has no token of its own for each"
                " of the ratings 1 to 5; choose another model for strategy=selectit"
            )
        return [ids[-1] for ids in answered]

    def encode(self, samples: Sequence[Sequence[Part]]) -> list[Encoded | Reject]:
        """Each sample's question, or why it can't be asked, in the order given."""
        if not samples:  # which the tokenizer can't take
            return []
        placeholder = self.rating_tokens[0]
        encoded: list[Encoded | Reject] = []
        for ids in self._encode([self._question(parts) for parts in samples]):
            length = len(ids) + 1
            if length > self.max_length:
                detail = f"{length} tokens to rate it, at most {self.max_length} are taken"
                encoded.append(Reject("too_long", detail))
                continue
            scored = [False] * len(ids) + [True]
            encoded.append(Encoded([*ids, placeholder], scored, [False] * length, False))
        return encoded

    def _encode(self, texts: list[str]) -> list[list[int]]:
        tokens = self.tokenizer(texts, return_attention_mask=False, return_token_type_ids=False)
        ids: list[list[int]] = tokens["input_ids"]
        return ids

    def _question(self, parts: Sequence[Part]) -> str:
        """Of a conversation, the last response is rated."""
        asked = "\n".join(part.text for part in parts[:-1])
        answered = parts[-1].text
        return f"{self.line}\nInstruction:{asked}\nResponse:{answered}\nThe answer is: \n"


def token_rating(logits: Tensor) -> Tensor:
    """S of each row. logits: [..., 5], of the rating tokens; over the whole vocabulary or only over
    these, the probabilities' proportions are the same."""
    r = logits.double().softmax(-1).softmax(-1)
    best, rating = r.max(-1)
    distances = (best.unsqueeze(-1) - r).abs().sum(-1) / (r.shape[-1] - 1)
    return (rating + 1) * distances
