"""The demo's instruction pool: four domains in several schemas, with faults on purpose.

The faults have fixed shares, so that what the rest of the project makes of them can be told:
`BAD_SHARE` of the lines for each kind of bad line, `DUPLICATE_SHARE` for exact copies of a good
line, and `NOISE_SHARE` for rows that are valid but whose response does not answer the prompt.
"""

from __future__ import annotations

import json
import string
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

from instructdiff_ray.demo import arithmetic, coding, general, medical
from instructdiff_ray.demo.words import COUNTS, NAMES, TOWNS, WORDS, Kind, Pair, numbered

BAD_SHARE = 0.003
DUPLICATE_SHARE = 0.02
NOISE_SHARE = 0.03
# Rows of any domain that have instruction, input and output instead of their domain's own fields.
ALPACA_SHARE = 0.4
# Rows that ask for two to five things at once, which makes long responses.
COMPOUND_SHARE = 0.15

DOMAINS: dict[str, Kind] = {
    "math": arithmetic.pair,
    "code": coding.pair,
    "medical": medical.pair,
    "general": general.pair,
}
SYSTEMS = (
    "You are a helpful assistant.",
    "You answer briefly and kindly.",
    "You are an experienced editor.",
    "Answer as you would to a friend.",
)

Row = dict[str, Any]


def write_pool(path: str, seed: int = 0, size: int = 3000) -> None:
    """Write a pool of `size` lines as JSONL; the same seed gives the same bytes."""
    # Binary, because some lines are not valid UTF-8.
    with open(path, "wb") as file:
        file.writelines(line + b"\n" for _, line in pool_lines(seed, size))


def pool_lines(seed: int, size: int) -> list[tuple[str, bytes]]:
    """The lines of a pool, each with what it is: good, noise, duplicate or a key of `BAD`."""
    rng = Random(f"pool {seed}")
    lines = [
        (kind, spoil(rng)) for kind, spoil in BAD.items() for _ in range(_part(size, BAD_SHARE))
    ]
    lines += [("noise", _dumped(_row(rng, _noise))) for _ in range(_part(size, NOISE_SHARE))]
    copies = _part(size, DUPLICATE_SHARE)
    good: dict[bytes, None] = {}
    while len(good) < size - copies - len(lines):
        good[_dumped(_row(rng, _same))] = None
    lines += [("good", line) for line in good]
    lines += [("duplicate", line) for line in rng.sample([*good], copies)]
    rng.shuffle(lines)
    return lines


def prose(seed: int = 0, size: int = 8000) -> Iterator[str]:
    """Texts for a base model: the pool's world in plain prose, in no instruction format.

    They come from the pool's generators under another seed. Most are a response alone, so that a
    model of them knows the words and the facts but not how a response follows from a request.
    """
    rng = Random(f"prose {seed}")
    for _ in range(size):
        request, text, response = _pair(rng, rng.choice([*DOMAINS]))
        yield rng.choice((response, response, f"{request} {text}".strip()))


def _part(size: int, share: float) -> int:
    return round(size * share)


def _dumped(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def _row(rng: Random, respond: Callable[[Random, str, str], str]) -> Row:
    """A row of a random domain and schema, its response passed through `respond`."""
    domain = rng.choice([*DOMAINS])
    instruction, text, response = _pair(rng, domain)
    response = respond(rng, domain, response)
    prompt = f"{instruction}\n\n{text}" if text else instruction
    if domain == "medical" or rng.random() < ALPACA_SHARE:
        row: Row = {"instruction": instruction, "input": text, "output": response}
    elif domain == "math":
        row = {"question": prompt, "answer": response}
    elif domain == "code":
        row = {"prompt": prompt, "completion": response}
    else:
        row = {"messages": _messages(rng, prompt, response)}
    return {**row, "domain": domain}


def _pair(rng: Random, domain: str) -> Pair:
    """A request of the domain, or several in one."""
    if rng.random() >= COMPOUND_SHARE:
        return DOMAINS[domain](rng)
    pairs = [DOMAINS[domain](rng) for _ in range(rng.randint(2, 5))]
    requests = [f"{instruction} {text}".strip() for instruction, text, _ in pairs]
    responses = [f"Part {number}. {pair[2]}" for number, pair in enumerate(pairs, 1)]
    return f"Do these {COUNTS[len(pairs)]} things.", numbered(requests), "\n\n".join(responses)


def _messages(rng: Random, prompt: str, response: str) -> list[dict[str, str]]:
    """A chat that ends with the response: alone, after a system message or as a second turn."""
    messages = [_message("user", prompt), _message("assistant", response)]
    form = rng.randrange(3)
    if form == 1:
        return [_message("system", rng.choice(SYSTEMS)), *messages]
    if form == 2:
        request, text, answer = general.pair(rng)
        opening = [_message("user", f"{request}\n\n{text}".strip()), _message("assistant", answer)]
        messages[0]["content"] = f"Thanks. Now something else: {prompt}"
        return opening + messages
    return messages


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _same(rng: Random, domain: str, response: str) -> str:
    return response


def _noise(rng: Random, domain: str, response: str) -> str:
    """Random words, random characters or the response to a request of another domain."""
    form = rng.randrange(3)
    if form == 0:
        return " ".join(rng.choices(NAMES + TOWNS + WORDS, k=rng.randint(8, 60)))
    if form == 1:
        return "".join(rng.choices(string.ascii_letters + string.punctuation + "   ", k=150))
    other = rng.choice([name for name in DOMAINS if name != domain])
    return DOMAINS[other](rng)[2]


def _with_output(output: Any) -> Callable[[Random], bytes]:
    """A way to make a line whose response is `output`."""

    def spoil(rng: Random) -> bytes:
        return _dumped({**_alpaca(rng), "output": output})

    return spoil


def _alpaca(rng: Random) -> Row:
    instruction, text, response = medical.pair(rng)
    return {"instruction": instruction, "input": text, "output": response, "domain": "medical"}


def _broken(rng: Random) -> bytes:
    line = _dumped(_alpaca(rng))
    return line[: rng.randint(len(line) // 3, len(line) - 2)]


def _nested(rng: Random) -> bytes:
    row = _alpaca(rng)
    return _dumped({**row, "output": [[row["output"]], []]})


def _unknown(rng: Random) -> bytes:
    row = _alpaca(rng)
    return _dumped({"headline": row["instruction"], "story": row["output"], "domain": "medical"})


def _array(rng: Random) -> bytes:
    return _dumped([*_alpaca(rng).values()])


def _latin(rng: Random) -> bytes:
    # Bytes of another encoding inside the response, so that the line would be JSON without them.
    return _dumped(_alpaca(rng)).replace(b'"output": "', b'"output": "\xff\xe9 ')


BAD: dict[str, Callable[[Random], bytes]] = {
    "broken JSON": _broken,
    "null response": _with_output(None),
    "nested response": _nested,
    "empty response": _with_output(""),
    "unknown schema": _unknown,
    "array": _array,
    "invalid UTF-8": _latin,
}
