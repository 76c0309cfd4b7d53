from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from instructdiff_ray.config.data import TemplateConfig
from instructdiff_ray.models.model import Model
from instructdiff_ray.models.template import Encoded, Encoder, render, training_example
from instructdiff_ray.sample import Part, Reject

DIRECT = TemplateConfig()
ALPACA = TemplateConfig("alpaca", "### I:\n{instruction}\n\n### R:\n", "{instruction}|{input}\n")
CHAT = TemplateConfig("chat", chat=True)
PAIR = [Part("instruction", "Say hello."), Part("response", "Hello there.")]
TALK = [
    Part("system", "Be kind."),
    Part("instruction", "One?"),
    Part("response", "1"),
    Part("instruction", "Two?"),
    Part("response", "2, of course"),
]
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40).filter(
    lambda text: text.strip()
)


def encode_one(model: Model, template: TemplateConfig, parts: list[Part], **options) -> Encoded:  # type: ignore[no-untyped-def]
    encoder = Encoder(
        model.load_tokenizer(),
        template,
        options.get("max_length", 512),
        options.get("truncate", False),
    )
    (encoded,) = encoder.encode([parts])
    if isinstance(encoded, Reject):
        raise encoded
    return encoded


def scored_text(model: Model, encoded: Encoded) -> str:
    scored = [i for i, kept in zip(encoded.input_ids, encoded.response, strict=True) if kept]
    return model.load_tokenizer().decode(scored)


def test_an_input_has_its_place_in_the_prompt(model: Model) -> None:
    parts = [Part("instruction", "Add."), Part("input", "1 {x}"), Part("response", "2")]
    rendered = render(parts, ALPACA, model.load_tokenizer())
    assert rendered.text == "Add.|1 {x}\n2"
    assert [rendered.text[slice(*span)] for span in rendered.responses] == ["2"]


def test_turns_follow_one_another_and_each_response_is_scored(model: Model) -> None:
    rendered = render(TALK, DIRECT, model.load_tokenizer())
    assert rendered.text == "Be kind.\n\nOne?\n1\n\nTwo?\n2, of course"
    assert [rendered.text[slice(*span)] for span in rendered.responses] == ["1", "2, of course"]


def test_a_chat_template_is_the_tokenizers_own_and_its_assistant_turns_are_scored(
    model: Model,
) -> None:
    encoded = encode_one(model, CHAT, TALK)
    text = model.load_tokenizer().decode(encoded.input_ids)
    assert text == model.load_tokenizer().apply_chat_template(
        [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": "One?"},
            {"role": "assistant", "content": "1"},
            {"role": "user", "content": "Two?"},
            {"role": "assistant", "content": "2, of course"},
        ],
        tokenize=False,
    )
    assert scored_text(model, encoded) == "12, of course"
    closing = [i for i, ends in zip(encoded.input_ids, encoded.closing, strict=True) if ends]
    assert model.load_tokenizer().convert_ids_to_tokens(closing) == ["<|im_end|>"] * 2


def test_a_chat_template_that_trims_is_followed(model: Model) -> None:
    tokenizer = model.load_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] | trim }};{% endfor %}"
    )
    rendered = render([Part("instruction", " q "), Part("response", " a \n")], CHAT, tokenizer)
    assert rendered.text == "[user]q;[assistant]a;"
    assert [rendered.text[slice(*span)] for span in rendered.responses] == ["a"]


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('Conversation roles must alternate') }}",
        "{% for m in messages %}{{ m['content'] | upper }}{% endfor %}",
        "{% for m in messages if m['role'] == 'user' %}{{ m['content'] }}{% endfor %}",
    ],
)
def test_a_chat_template_that_refuses_or_rewrites_makes_a_reject(
    model: Model, template: str
) -> None:
    tokenizer = model.load_tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(Reject) as caught:
        render(PAIR, CHAT, tokenizer)
    assert caught.value.reason == "chat_template"


@settings(deadline=None, max_examples=60, derandomize=True)
@given(instruction=TEXT, response=TEXT, template=st.sampled_from([DIRECT, ALPACA, CHAT]))
def test_scored_tokens_are_those_that_end_behind_the_prompt(
    model: Model, instruction: str, response: str, template: TemplateConfig
) -> None:
    tokenizer = model.load_tokenizer()
    parts = [Part("instruction", instruction), Part("response", response)]
    rendered = render(parts, template, tokenizer)
    (start, end) = rendered.responses[0]
    assert rendered.text[start:end] in (response, response.strip())
    encoded = encode_one(model, template, parts)
    offsets = tokenizer(rendered.text, return_offsets_mapping=True)["offset_mapping"]
    expected = [token_end > start and token_start < end for token_start, token_end in offsets]
    assert encoded.response == expected


def test_a_token_that_straddles_the_border_belongs_to_the_response() -> None:
    vocabulary = {"a": 0, ":": 1, "b": 2, ":b": 3, "?": 4}
    tokenizer = Tokenizer(models.BPE(vocabulary, [(":", "b")], unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("never", "isolated")
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    template = TemplateConfig("tight", "{instruction}:", "{instruction}{input}:")
    encoder = Encoder(fast, template, 10, truncate=False)
    (encoded,) = encoder.encode([[Part("instruction", "a"), Part("response", "ba")]])
    assert isinstance(encoded, Encoded)
    assert fast.convert_ids_to_tokens(encoded.input_ids) == ["a", ":b", "a"]
    assert encoded.response == [False, True, True]


def test_a_long_sample_is_a_reject_or_cut_off(model: Model) -> None:
    length = len(encode_one(model, DIRECT, PAIR).input_ids)
    with pytest.raises(Reject) as caught:
        encode_one(model, DIRECT, PAIR, max_length=length - 1)
    assert caught.value.reason == "too_long"
    cut = encode_one(model, DIRECT, PAIR, max_length=length - 1, truncate=True)
    assert (len(cut.input_ids), cut.truncated) == (length - 1, True)
    assert len(encode_one(model, DIRECT, PAIR, max_length=length).input_ids) == length
    with pytest.raises(Reject) as caught:
        encode_one(model, DIRECT, PAIR, max_length=2, truncate=True)
    assert caught.value.reason == "no_response_tokens"


def test_training_learns_the_response_and_its_end_and_nothing_else(model: Model) -> None:
    tokenizer = model.load_tokenizer()
    encoded = encode_one(model, DIRECT, PAIR)
    example = training_example(encoded, tokenizer.eos_token_id, False, 512)
    assert example["input_ids"] == [*encoded.input_ids, tokenizer.eos_token_id]
    learned = [label for label in example["labels"] if label != -100]
    assert tokenizer.decode(learned[:-1]) == "Hello there."
    assert learned[-1] == tokenizer.eos_token_id

    talk = encode_one(model, CHAT, TALK)
    example = training_example(talk, tokenizer.eos_token_id, True, 512)
    assert example["input_ids"] == talk.input_ids
    learned = [label for label in example["labels"] if label != -100]
    assert tokenizer.decode(learned) == "1<|im_end|>2, of course<|im_end|>"


def test_a_cut_off_sample_is_not_taught_to_end(model: Model) -> None:
    length = len(encode_one(model, DIRECT, PAIR).input_ids)
    cut = encode_one(model, DIRECT, PAIR, max_length=length - 1, truncate=True)
    example = training_example(cut, model.load_tokenizer().eos_token_id, False, 512)
    assert example["input_ids"] == cut.input_ids


def test_a_sample_that_fills_the_maximum_gets_no_token_behind_it(model: Model) -> None:
    encoded, eos = encode_one(model, DIRECT, PAIR), model.load_tokenizer().eos_token_id
    length = len(encoded.input_ids)
    assert training_example(encoded, eos, False, length)["input_ids"] == encoded.input_ids
    assert len(training_example(encoded, eos, False, length + 1)["input_ids"]) == length + 1


@pytest.mark.parametrize("template", [DIRECT, CHAT])
def test_the_ending_is_what_training_teaches_behind_the_response(
    model: Model, template: TemplateConfig
) -> None:
    tokenizer = model.load_tokenizer()
    parts = PAIR if template is DIRECT else TALK
    (whole,) = Encoder(tokenizer, template, 512, True).encode([parts])
    (ending,) = Encoder(tokenizer, template, 512, True, "ending").encode([parts])
    assert isinstance(whole, Encoded) and isinstance(ending, Encoded)
    taught = training_example(whole, tokenizer.eos_token_id, template.chat, 512)
    assert ending.input_ids == taught["input_ids"]
    (place,) = [n for n, scored in enumerate(ending.response) if scored]
    assert taught["labels"][place] == ending.input_ids[place]
    assert ending.input_ids[place] == tokenizer.eos_token_id  # which its chat template writes too
    assert not any(label != -100 for label in taught["labels"][place + 1 :])


@pytest.mark.parametrize("template", [DIRECT, CHAT])
def test_what_was_cut_off_has_no_ending(model: Model, template: TemplateConfig) -> None:
    tokenizer = model.load_tokenizer()
    parts = PAIR if template is DIRECT else TALK
    (whole,) = Encoder(tokenizer, template, 512, True).encode([parts])
    assert isinstance(whole, Encoded)
    length = len(whole.input_ids) - 2
    (ending,) = Encoder(tokenizer, template, length, True, "ending").encode([parts])
    assert isinstance(ending, Reject) and ending.reason == "no_ending"


def test_a_response_alone_is_cut_where_it_ends_in_the_whole(model: Model) -> None:
    tokenizer, template = model.load_tokenizer(), TemplateConfig(response_prompt="Answer: ")
    parts = [Part("instruction", "Count to ten."), Part("response", "one two three four five six")]
    (full,) = Encoder(tokenizer, template, 1000, True).encode([parts])
    assert isinstance(full, Encoded)
    limit = len(full.input_ids) - 4
    (cut,) = Encoder(tokenizer, template, limit, True).encode([parts])
    (alone,) = Encoder(tokenizer, template, limit, True, "response").encode([parts])
    assert isinstance(cut, Encoded) and isinstance(alone, Encoded)

    def scored(encoded: Encoded) -> str:
        pairs = zip(encoded.input_ids, encoded.response, strict=True)
        return tokenizer.decode([token for token, response in pairs if response]).strip()

    assert scored(alone) == scored(cut) != scored(full)
