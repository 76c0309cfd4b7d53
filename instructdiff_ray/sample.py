"""A sample: its parts, its identity, and why a row is none."""

from __future__ import annotations

import hashlib
import json
from typing import Literal, NamedTuple

Kind = Literal["system", "instruction", "input", "response"]


class Part(NamedTuple):
    """One piece of a sample, in the order in which it is read."""

    kind: Kind
    text: str


class Reject(Exception):
    """Why a row is no sample. `reason` is one of a few words and is counted; `detail` explains."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


def sample_id(parts: list[Part]) -> str:
    """32 hex digits that depend on the sample's content and on nothing else."""
    text = json.dumps(parts, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]
