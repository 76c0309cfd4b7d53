"""A small causal language model and its tokenizer, trained from scratch on the CPU."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

VOCABULARY = 2048
CONTEXT = 1024
END, PAD, START = "<|im_end|>", "<|pad|>", "<|im_start|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
THREADS = 2
BLOCK, BATCH = 256, 8
LEARNING_RATE, WARM_UP = 3e-3, 0.05
REPORT_EVERY = 25


def train_model(
    folder: str,
    texts: Iterable[str],
    seed: int = 0,
    steps: int = 400,
    report: Callable[[int, int, float], None] | None = None,
) -> None:
    """Train a tokenizer and a model of about a million parameters, and save both to `folder`.

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


def _tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer: every text has a spelling, no token is unknown."""
    tokenizer = Tokenizer(models.BPE())
    # Single digits, so that a small model can see how numbers are built.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END, PAD, START],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[START],
        model_max_length=CONTEXT,
        chat_template=CHAT_TEMPLATE,
    )


def _config(tokenizer: PreTrainedTokenizerFast) -> Qwen2Config:
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


def _packed(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> torch.Tensor:
    """All texts as one row of token ids, each closed by the end token."""
    ids = [token for text in texts for token in [*tokenizer(text).input_ids, tokenizer.eos_token_id]]
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
