"""From a sample's parts to tokens, and which are the response. Training and scoring share it.

The whole text is tokenised once, never prompt and response apart, because a tokenizer may merge
across their border. A token belongs to a response when its character span ends after the last
character before that response, and does not lie behind the response's end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jinja2.exceptions import TemplateError

from instructdiff_ray.config.data import TemplateConfig
from instructdiff_ray.sample import Part, Reject

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]


@dataclass(frozen=True)
class Rendered:
    """A sample's text and the character span (start, end) of each response in it."""

    text: str
    responses: list[Span]


@dataclass(frozen=True)
class Encoded:
    """A sample as the model sees it; all three lists have one entry a token.

    input_ids: token ids, at most `max_length`.
    response: whether the token is scored, that is, belongs to a response and has a context.
    closing: whether the token ends an assistant's turn (the chat template's end mark): it is
        learned in training and not scored.
    truncated: whether tokens were cut off.
    """

    input_ids: list[int]
    response: list[bool]
    closing: list[bool]
    truncated: bool


def render(
    parts: Sequence[Part], template: TemplateConfig, tokenizer: PreTrainedTokenizerBase
) -> Rendered:
    """The sample's text under the template. Raises Reject where a chat template refuses it."""
    return _render_chat(parts, tokenizer) if template.chat else _render_prompt(parts, template)


def render_responses(parts: Sequence[Part], template: TemplateConfig) -> Rendered:
    """The responses without what was asked, each behind `template.response_prompt`."""
    text, responses = "", []
    for kind, content in parts:
        if kind == "response":
            text += template.response_prompt
            responses.append((len(text), len(text) + len(content)))
            text += content + "\n\n"
    return Rendered(text[: responses[-1][1]], responses)


class Encoder:
    """Encodes batches of samples for one tokenizer, template and maximum length.

    form: `whole`; `response`, their responses alone; or `ending`, of which nothing is scored but
        the end that the model learns behind the last response.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: TemplateConfig,
        max_length: int,
        truncate: bool,
        form: str = "whole",
    ) -> None:
        self.tokenizer = tokenizer
        self.template = template
        self.max_length = max_length
        self.truncate = truncate
        self.form = form

    def encode(self, samples: Sequence[Sequence[Part]]) -> list[Encoded | Reject]:
        """Each sample encoded, or why it can't be, in the order given."""
        results: list[Rendered | Reject] = []
        for parts in samples:
            try:
                results.append(self._render(parts))
            except Reject as reject:
                results.append(reject)
        texts = [result.text for result in results if isinstance(result, Rendered)]
        if not texts:
            return [result for result in results if isinstance(result, Reject)]
        encodings = self._tokenize(texts)
        return [
            result if isinstance(result, Reject) else self._mark(result.responses, *next(encodings))
            for result in results
        ]

    def locate(self, parts: Sequence[Part]) -> tuple[Rendered, list[Span]]:
        """The sample's text, and which characters of it each token stands for.

        A token that holds a part of a character's bytes has that whole character's span.
        """
        rendered = self._render(parts)
        ((_, offsets),) = self._tokenize([rendered.text])
        return rendered, offsets

    def _tokenize(self, texts: list[str]) -> Iterator[tuple[list[int], list[Span]]]:
        """Ids and character spans of each text's tokens."""
        # A chat template writes its own special tokens; a plain prompt takes the tokenizer's.
        tokens = self.tokenizer(
            texts,
            add_special_tokens=self.form == "response" or not self.template.chat,
            return_offsets_mapping=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        return zip(tokens["input_ids"], tokens["offset_mapping"], strict=True)

    def instruction_tokens(self, samples: Sequence[Sequence[Part]]) -> list[int]:
        """How many tokens of each sample ask: of all that is no response, without the template."""
        texts = ["\n".join(p.text for p in parts if p.kind != "response") for parts in samples]
        if not texts:
            return []
        tokens = self.tokenizer(
            texts, add_special_tokens=False, return_attention_mask=False, verbose=False
        )
        return [len(ids) for ids in tokens["input_ids"]]

    def _render(self, parts: Sequence[Part]) -> Rendered:
        if self.form == "response":
            return render_responses(self._cut(parts), self.template)
        return render(parts, self.template, self.tokenizer)

    def _cut(self, parts: Sequence[Part]) -> list[Part]:
        """The responses as far as the whole sample's tokens reach: both are scored on the same."""
        responses = [part for part in parts if part.kind == "response"]
        if not self.truncate:
            return responses
        whole = render(parts, self.template, self.tokenizer)
        tokens = self.tokenizer(
            whole.text,
            add_special_tokens=not self.template.chat,
            return_offsets_mapping=True,
            verbose=False,
        )
        offsets = tokens["offset_mapping"]
        if len(offsets) <= self.max_length:
            return responses
        reach = max(end for _, end in offsets[: self.max_length])
        lengths = [max(0, min(end, reach) - start) for start, end in whole.responses]
        return [
            Part(part.kind, part.text[:length])
            for part, length in zip(responses, lengths, strict=True)
        ]

    def _mark(
        self, responses: list[Span], input_ids: list[int], offsets: list[Span]
    ) -> Encoded | Reject:
        length = len(input_ids)
        if length > self.max_length and not self.truncate:
            return Reject("too_long", f"{length} tokens, at most {self.max_length} are taken")
        kept = min(length, self.max_length)
        response, closing = [False] * kept, [False] * kept
        position = 0
        for start, end in responses:
            while position < kept and offsets[position][1] <= start:
                position += 1
            while position < kept and (offsets[position][1] <= end or offsets[position][0] < end):
                # A special token that the tokenizer adds has the empty span (0, 0).
                response[position] = offsets[position][1] > start
                position += 1
            if position < kept:
                closing[position] = True
        # The first token has no context, so no model gives it a probability.
        response[0:1] = [False] * len(response[0:1])
        if not any(response):
            cut = f" within the first {self.max_length} tokens" if length > kept else ""
            return Reject("no_response_tokens", f"no token of a response{cut}")
        encoded = Encoded(input_ids[:kept], response, closing, length > kept)
        return self._ending(encoded) if self.form == "ending" else encoded

    def _ending(self, encoded: Encoded) -> Encoded | Reject:
        eos, chat = self.tokenizer.eos_token_id, self.template.chat
        input_ids = training_example(encoded, eos, chat, self.max_length)["input_ids"]
        appended = range(len(encoded.input_ids), len(input_ids))
        closing = [place for place, closes in enumerate(encoded.closing) if closes]
        ends = closing if chat and not encoded.truncated else appended
        if not ends:
            return Reject("no_ending", "cut off, or no token stands for the end of a response")
        response = [place == ends[-1] for place in range(len(input_ids))]
        return Encoded(input_ids, response, [False] * len(input_ids), False)


def training_example(
    encoded: Encoded, eos_token_id: int | None, chat: bool, max_length: int
) -> dict[str, list[int]]:
    """`input_ids` and `labels` (−100 where no loss is): the responses and the end of each.

    Under a chat template the end is the template's own mark; else EOS ends the text, unless it was
    cut off and so has no end, or fills `max_length`, behind which a model may have no position.
    """
    learned = [
        scored or (chat and closes)
        for scored, closes in zip(encoded.response, encoded.closing, strict=True)
    ]
    input_ids = list(encoded.input_ids)
    labels = [token if learn else -100 for token, learn in zip(input_ids, learned, strict=True)]
    ends = not encoded.truncated and len(input_ids) < max_length
    if not chat and ends and eos_token_id is not None:
        input_ids.append(eos_token_id)
        labels.append(eos_token_id)
    return {"input_ids": input_ids, "labels": labels}


def _render_prompt(parts: Sequence[Part], template: TemplateConfig) -> Rendered:
    """The template's prompt and the response; the turns of a conversation follow one another."""
    text, responses = "", []
    asked: dict[str, str] = {}
    for kind, content in parts:
        if kind == "system":
            text += content + "\n\n"
        elif kind == "response":
            pattern = template.prompt_with_input if "input" in asked else template.prompt
            text += pattern.format(**asked)
            responses.append((len(text), len(text) + len(content)))
            text += content + "\n\n"
            asked = {}
        else:
            asked[kind] = content
    return Rendered(text[: responses[-1][1]], responses)


def _render_chat(parts: Sequence[Part], tokenizer: PreTrainedTokenizerBase) -> Rendered:
    """The tokenizer's chat template, with the assistant's turns located in what it writes.

    The template is rendered with a mark in the place of each response; around the marks stands the
    scaffolding, into which the responses are put back (trimmed, where the template trims). Only
    when this gives the real rendering to the letter are the spans known; else the row is a reject.
    """
    messages = chat_messages(parts)
    answers = [m["content"] for m in messages if m["role"] == "assistant"]
    marks = iter(f"\ue000{number}\ue001" for number in range(len(answers)))
    marked = [{**m, "content": next(marks)} if m["role"] == "assistant" else m for m in messages]
    try:
        text = str(tokenizer.apply_chat_template(messages, tokenize=False))
        scaffold = str(tokenizer.apply_chat_template(marked, tokenize=False))
    except TemplateError as error:
        raise Reject("chat_template", f"the chat template refuses it: {error}") from None
    for contents in (answers, [answer.strip() for answer in answers]):
        rendered = _fill(scaffold, contents)
        if rendered is not None and rendered.text == text:
            return rendered
    raise Reject("chat_template", "the chat template rewrites the response")


def _fill(scaffold: str, contents: list[str]) -> Rendered | None:
    text, responses, rest = "", [], scaffold
    for number, content in enumerate(contents):
        before, mark, rest = rest.partition(f"\ue000{number}\ue001")
        if not mark:
            return None
        text += before
        responses.append((len(text), len(text) + len(content)))
        text += content
    return Rendered(text + rest, responses)


def chat_messages(parts: Sequence[Part]) -> list[dict[str, str]]:
    """The parts as `role` and `content`; an input follows its instruction on a new line."""
    roles = {"system": "system", "instruction": "user", "response": "assistant"}
    messages: list[dict[str, str]] = []
    for kind, content in parts:
        if kind == "input" and messages and messages[-1]["role"] == "user":
            messages[-1]["content"] = f"{messages[-1]['content']}\n{content}".strip()
        else:
            messages.append({"role": roles.get(kind, "user"), "content": content})
    return messages
