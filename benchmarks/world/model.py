"""The models of the world: character models of three sizes, trained and tested in this process."""

from __future__ import annotations

import math
import random
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from benchmarks.world.tasks import Task

# Token ids: BOS, EOS, and the characters.
BOS, EOS = 0, 1
CHARACTERS = string.ascii_letters + string.digits + " =*-" + string.punctuation
IDS = {character: number for number, character in enumerate(dict.fromkeys(CHARACTERS), start=2)}
IGNORED = -100
# Samples are packed into rows of up to so many tokens; a sample has a third of it on average.
PACKED = 64
# Each size's hidden width and layers.
SIZES = {"small": (48, 2), "medium": (64, 2), "large": (96, 3)}


@dataclass(frozen=True)
class Schedule:
    """How a model is trained: AdamW, cosine decay after a linear rise, gradients clipped at 1."""

    learning_rate: float
    batch: int
    epochs: int = 1
    warmup_share: float = 0.05


def new_model(size: str, seed: int) -> PreTrainedModel:
    """A model with random weights."""
    hidden, layers = SIZES[size]
    torch.manual_seed(seed)
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(IDS) + 2,
            hidden_size=hidden,
            intermediate_size=4 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=128,
            tie_word_embeddings=True,
            initializer_range=0.05,
            bos_token_id=BOS,
            eos_token_id=EOS,
        )
    )


def encode(prompt: str, response: str) -> tuple[list[int], list[bool]]:
    """Token ids, and which of them are the response's; EOS, which ends it, is not among these."""
    ids = [BOS, *(IDS[c] for c in prompt + response), EOS]
    inside = [False] * (1 + len(prompt)) + [True] * len(response) + [False]
    return ids, inside


def train(
    model: PreTrainedModel,
    samples: Sequence[tuple[str, str]],
    schedule: Schedule,
    seed: int,
    on_prompts: bool = False,
) -> PreTrainedModel:
    """Trains the model, in place, on the responses and the EOS behind them; in pre-training on the
    prompts too."""
    draw = random.Random(seed)
    steps = schedule.epochs * math.ceil(len(samples) / schedule.batch)
    optimizer = torch.optim.AdamW(
        model.parameters(), schedule.learning_rate, weight_decay=0.01, fused=True
    )
    rise = max(1, round(schedule.warmup_share * steps))
    rates = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / rise, 0.5 + 0.5 * math.cos(math.pi * step / steps)),
    )
    model.train()
    for _ in range(schedule.epochs):
        for rows in _batches(len(samples), schedule.batch, draw):
            batch = packed([labelled(*samples[row], on_prompts) for row in rows])
            loss = model(**batch, use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            rates.step()
            optimizer.zero_grad()
    return model.eval()


def _batches(count: int, size: int, draw: random.Random) -> Iterator[list[int]]:
    order = draw.sample(range(count), count)
    for start in range(0, count, size):
        yield order[start : start + size]


def packed(samples: Sequence[tuple[list[int], list[int]]]) -> dict[str, torch.Tensor]:
    """Token ids and labels of samples → a model's input, with several samples in a row.

    Padding every sample to the longest would double the work. A sample's positions begin at 0, by
    which transformers keeps each from seeing the one before it in its row.
    """
    rows: list[list[tuple[list[int], list[int]]]] = []
    lengths: list[int] = []
    # First fit, the longest first.
    for ids, labels in sorted(samples, key=lambda sample: -len(sample[0])):
        fitting = (n for n, length in enumerate(lengths) if length + len(ids) <= PACKED)
        place = next(fitting, len(rows))
        if place == len(rows):
            rows.append([])
            lengths.append(0)
        rows[place].append((ids, labels))
        lengths[place] += len(ids)
    for row, length in zip(rows, lengths, strict=True):
        missing = max(lengths) - length
        row.append(([EOS] * missing, [IGNORED] * missing))
    return {
        "input_ids": torch.tensor([[i for ids, _ in row for i in ids] for row in rows]),
        "labels": torch.tensor([[i for _, labels in row for i in labels] for row in rows]),
        "position_ids": torch.tensor(
            [[i for ids, _ in row for i in range(len(ids))] for row in rows]
        ),
    }


def labelled(prompt: str, response: str, on_prompts: bool = False) -> tuple[list[int], list[int]]:
    """Token ids, and those that are trained; the first, behind which nothing stands, is not."""
    ids, inside = encode(prompt, response)
    trained = [False, *(on_prompts or t for t in inside[1:-1]), True]
    return ids, [i if t else IGNORED for i, t in zip(ids, trained, strict=True)]


@torch.inference_mode()
def exact_match(model: PreTrainedModel, tasks: Sequence[Task]) -> np.ndarray:
    """Which tasks the model answers right, if it takes the likeliest token each time: a mask.

    It does so exactly where each token of the answer, and EOS, is the likeliest behind the right
    ones before it; so one pass tells.
    """
    samples = [labelled(task.prompt, task.answer) for task in tasks]
    # One sample a row. Padding, on the right, is seen by no token.
    tokens, labels = (
        pad_sequence([*map(torch.tensor, column)], batch_first=True, padding_value=padding)
        for column, padding in zip(zip(*samples, strict=True), (EOS, IGNORED), strict=True)
    )
    likeliest = model(input_ids=tokens, use_cache=False).logits[:, :-1].argmax(-1)
    right = (likeliest == labels[:, 1:]) | (labels[:, 1:] == IGNORED)
    return np.asarray(right.all(1).numpy())
