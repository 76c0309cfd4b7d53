"""A model that waits at a gate. This file is copied into the model's folder, as its own code.

Only so is a process of a real run stopped at a known place: while the file that the model's
configuration names as `gate` is there, no more samples pass than the number in it says.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from transformers import Qwen2ForCausalLM


class CustomModel(Qwen2ForCausalLM):
    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.gate = Path(config.gate)
        self.seen = 0
        self.base_model.register_forward_pre_hook(self.pass_gate, with_kwargs=True)

    def pass_gate(self, module: Any, arguments: Any, options: dict[str, Any]) -> None:
        # Samples are rows, or packed into one row and start where a position is 0.
        places = options.get("position_ids")
        rows = len(options["input_ids"])
        self.seen += rows if places is None else int((places == 0).sum())
        if self.seen > self.allowed():
            waiting = Path(f"{self.gate}-{os.getpid()}")
            waiting.touch()
            while self.seen > self.allowed():
                time.sleep(0.02)
            waiting.unlink(missing_ok=True)

    def allowed(self) -> float:
        try:
            return int(self.gate.read_text())
        except FileNotFoundError:
            return float("inf")
