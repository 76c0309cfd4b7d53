"""A small causal language model and its tokenizer, trained from scratch on the CPU."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

VOCABULARY = 2048
CONTEXT = 1024
END, PAD, START = "<|im_end|>", "<|pad|>", "<|im_start|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
THREADS = 1  # two on a busy machine of two cores wait for each other: ten times slower
BLOCK, BATCH = 256, 8
LEARNING_RATE, WARM_UP = 3e-3, 0.05
REPORT_EVERY = 10


def train_model(
    folder: str,
    texts: Iterable[str],
    seed: int = 0,
    steps: int = 300,
    report: Callable[[int, int, float], None] | None = None,
) -> None:
    """Train a tokenizer and a model of 0.7 million parameters, and save both to `folder`.

    The folder is one that `AutoTokenizer` and `AutoModelForCausalLM` load. `report` is called now
    and then with the step, the number of steps and the mean loss since the last call. The same
    texts, seed and number of threads give the same model.
    """
    texts = list(texts)
    tokenizer = _tokenizer(texts)
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        # The caller's random state is neither used nor moved.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = Qwen2ForCausalLM(_config(tokenizer))
            _train(model, _packed(tokenizer, texts), steps, report)
    finally:
        torch.set_num_threads(threads)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _tokenizer(texts: list[str]) -> Qwen2Tokenizer:
    """A byte-level BPE tokenizer: every text has a spelling, no token is unknown."""
    # `AutoTokenizer` reads a qwen2 folder by this class, which brings its own splitting of a text
    # (digits stand alone) and takes only the vocabulary from the folder. So it is used here too.
    special = {"unk_token": END, "eos_token": END, "pad_token": PAD}
    trained = Qwen2Tokenizer(**special).backend_tokenizer
    trainer = BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END, PAD, START],
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    trained.train_from_iterator(texts, trainer)
    learned = json.loads(trained.to_str())["model"]
    # Annotated as a list of strings, but what it is handed on to takes pairs only.
    merges: Any = [tuple(merge) for merge in learned["merges"]]
    return Qwen2Tokenizer(
        vocab=learned["vocab"],
        merges=merges,
        extra_special_tokens=[START],
        model_max_length=CONTEXT,
        chat_template=CHAT_TEMPLATE,
        **special,
    )


def _config(tokenizer: Qwen2Tokenizer) -> Qwen2Config:
    return Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _packed(tokenizer: Qwen2Tokenizer, texts: list[str]) -> torch.Tensor:
    """All texts as one row of token ids, each closed by the end token."""
    ids = [
        token for text in texts for token in [*tokenizer(text).input_ids, tokenizer.eos_token_id]
    ]
    return torch.tensor(ids)


def _train(
    model: Qwen2ForCausalLM,
    ids: torch.Tensor,
    steps: int,
    report: Callable[[int, int, float], None] | None,
) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    model.train()
    losses: list[float] = []
    for step in range(1, steps + 1):
        starts = torch.randint(len(ids) - BLOCK, (BATCH,)).tolist()
        batch = torch.stack([ids[start : start + BLOCK] for start in starts])
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        warm = min(1.0, step / (WARM_UP * steps))
        optimizer.param_groups[0]["lr"] = (
            LEARNING_RATE * warm * 0.5 * (1 + math.cos(math.pi * step / steps))
        )
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if report is not None and (step % REPORT_EVERY == 0 or step == steps):
            report(step, steps, sum(losses) / len(losses))
            losses.clear()
