"""`scores.json` is read as it was written, and refused where it does not agree with itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest

from instructdiff_ray.config.run import Config
from instructdiff_ray.config.selection import SelectConfig
from instructdiff_ray.errors import UserError
from instructdiff_ray.sharing.publication import (
    Publication,
    PublishedFile,
    PublishedScores,
    read_publication,
    scores_file,
)
from instructdiff_ray.sharing.settings import run_settings
from instructdiff_ray.storage.artifacts import make_key
from instructdiff_ray.training.known_models import Training

WEIGHTS = "0123456789abcdef"
TEMPLATE = {"name": "alpaca", "prompt": "{instruction}", "prompt_with_input": "", "chat": False}
RENDERING = {"tokenizer": "b" * 16, "template": TEMPLATE, "max_length": 512, "truncate": False}
INPUTS = {
    "version": 2,
    "base": "b" * 16,
    "rendering": RENDERING,
    "samples": "c" * 16,
    "hyper_parameters": {"learning_rate": 2e-05, "epochs": 3},
    "precision": "bf16",
    "seed": 0,
}


def scores_of(name: str, model: str, number: int = 1) -> PublishedScores:
    rendering = {**RENDERING, "form": "whole", "wording": 0}
    scorer = {"version": 2, "model": model, "precision": "bf16", "rendering": rendering}
    key = make_key(**scorer)
    files = [PublishedFile(scores_file(key, n), n, 5, 100, "a" * 64) for n in range(2)]
    return PublishedScores(name, number, None, key, scorer, ["nll", "entropy"], 10, 2, files, [])


def publication(path: Any = "hf://datasets/openai/gsm8k@abc", **settings: Any) -> Publication:
    key = make_key(**INPUTS)
    guarded = SelectConfig(guard=["typical", "complete"])
    chosen = run_settings(asdict(Config(domain="math", select=guarded)))
    return Publication(
        {"name": "Qwen/Qwen2.5-7B", "commit": "d" * 40, "identity": "b" * 16},
        {"samples": 10, "digest": "e" * 16, "path": path, "subset": "main", "split": None,
         "limit": None},
        {**chosen, **settings},
        [scores_of("base", "b" * 16), scores_of("calibrated", f"{key}/{WEIGHTS}")],
        {key: Training(INPUTS, WEIGHTS, 3)},
    )  # fmt: skip


def test_what_is_written_is_read() -> None:
    assert read_publication(publication().to_json()) == publication()


Change = Callable[[dict[str, Any]], Any]
CHANGES: dict[str, tuple[Change, str]] = {
    "another format": (lambda p: p.update(format=3), "has format 3, and this version reads 2"),
    "no format": (lambda p: p.pop("format"), "is not what `scores push` writes"),
    "no models": (lambda p: p.pop("models"), "is not what `scores push` writes"),
    "unknown": (lambda p: p.update(more=1), "is not what `scores push` writes"),
    "list": (lambda p: p.update(models=[]), "is not what `scores push` writes"),
    "no pool": (lambda p: p.update(pool={}), "is not what `scores push` writes"),
    "pool": (lambda p: p["pool"].update(samples="many"), "does not say what pool"),
    "base model": (lambda p: p["base_model"].update(name=["x"]), "what pool and base model"),
    "undescribed": (lambda p: p.update(models={}), "the model of the calibrated scores is not"),
    "precision": (lambda p: p["scores"][0]["scorer"].update(precision="fp32"), "is not the key of"),
    "recipe": (
        lambda p: next(iter(p["models"].values()))["inputs"].update(seed=1),
        "is not the key of what it is said to be made of",
    ),
    "weights": (
        lambda p: next(iter(p["models"].values())).update(weights="../../etc"),
        "has no hash of its weights",
    ),
    "other weights": (
        lambda p: next(iter(p["models"].values())).update(weights="f" * 16),
        "the model of the calibrated scores is not described",
    ),
    "samples": (lambda p: p["scores"][0].update(samples=9), "are not as they should be"),
    "file name": (
        lambda p: p["scores"][0]["files"][0].update(name="../x.parquet"),
        "are not as they should be",
    ),
    "same file twice": (
        lambda p: p["scores"][0]["files"][0].update(partition=1),
        "are not as they should be",
    ),
    "digest": (lambda p: p["scores"][0]["files"][0].update(sha256="a"), "no valid size or digest"),
    "size": (lambda p: p["scores"][0]["files"][0].update(size=-1), "no valid size or digest"),
    "partitions": (lambda p: p["scores"][0].update(partitions=3), "3 is no number of partitions"),
    "float": (lambda p: p["scores"][0].update(partitions=2.0), "2.0 is no number of partitions"),
    "rows": (lambda p: p["scores"][0]["files"][0].update(rows=1 << 40), "no valid size or digest"),
    "long file": (lambda p: p["scores"][0]["files"][0].update(size=1 << 30), "no valid size"),
    "true": (lambda p: p["scores"][0]["files"][0].update(rows=True), "no valid size or digest"),
    "measures": (lambda p: p["scores"][0].update(measures=None), "not described as scores are"),
    "measure": (lambda p: p["scores"][0].update(measures=["\n"]), "not described as scores are"),
    "domain": (lambda p: p["scores"][1].update(domain=["x"]), "not described as scores are"),
    "taken from": (
        lambda p: p["scores"][0].update(taken_from=["a/b@\x1b[2J"]),
        "not described as scores are",
    ),
    "name": (lambda p: p["scores"][0].update(name="\x1b[2J"), "not described as scores are"),
    "round": (lambda p: p["scores"][1].update(round="1"), "not described as scores are"),
    "key": (lambda p: p["scores"][0].update(key="\x1b[2J\n"), "is not the key of"),
    "file": (
        lambda p: p["scores"][0]["files"][0].update(name="\x1b[2J\n", size=-1),
        "no valid size or digest",
    ),
    "trained on": (
        lambda p: next(iter(p["models"].values())).update(samples={"x": "y"}),
        "or number of samples",
    ),
    "model": (lambda p: p["models"].update({"\x1b[2J": p["models"].popitem()[1]}), "not the key"),
    "pool of": (lambda p: p["pool"].update(samples=10**4000), "does not say what pool"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_does_not_agree_with_itself_is_refused_in_one_line(name: str) -> None:
    value = json.loads(publication().to_json())
    change, line = CHANGES[name]
    change(value)
    with pytest.raises(UserError, match=line) as refused:
        read_publication(json.dumps(value).encode())
    assert str(refused.value).isprintable() and len(str(refused.value)) < 200


@pytest.mark.parametrize("data", [b"", b"[]", b"1", b"{", b"\xff", b"[" * 100_000])
def test_what_is_no_manifest_is_refused_in_one_line(data: bytes) -> None:
    with pytest.raises(UserError, match="is not what `scores push` writes"):
        read_publication(data)
