"""`README.md` of a repository of scores: what they are, and the command that uses them."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from huggingface_hub import DatasetCardData

from instructdiff_ray.config.clean import CleanConfig
from instructdiff_ray.config.data import DataConfig, TemplateConfig
from instructdiff_ray.config.selection import BaselineConfig, SelectConfig
from instructdiff_ray.config.training import CalibrateConfig
from instructdiff_ray.results.card import card_environment, size_category
from instructdiff_ray.sharing.publication import Publication, PublishedScores
from instructdiff_ray.sharing.settings import OMITTED

TEMPLATE = "card.md.j2"
SET = {"template": TemplateConfig(), "calibrate": CalibrateConfig(), "select": SelectConfig()}
USUAL = {"data": DataConfig(), "clean": CleanConfig(), "baseline": BaselineConfig()}
# What Hydra reads as text without quotes, but for some words, and what it wants escaped in keys.
PLAIN, NO_TEXT = re.compile(r"[A-Za-z][A-Za-z0-9_./@:-]*"), ("null", "true", "false", "inf", "nan")
KEY_MARKS, ESCAPED = re.compile(r"([\\()\[\]{}:=, \t])"), r"\\\1"


def render_card(publication: Publication, repository: str) -> str:
    """The card of scores that are published as this repository."""
    configs = _configs(publication)
    base = _base_model(publication)
    body = (
        card_environment(__package__)
        .get_template(TEMPLATE)
        .render(
            publication=publication,
            repository=repository,
            base_model=base,
            models={each.key: _model(publication, each, base) for each in publication.scores},
            settings=[*settings_line(publication)],
            configs=configs,
        )
    )
    first = next(iter(configs))
    data = DatasetCardData(
        pretty_name="InstructDiff scores",
        size_categories=[size_category(publication.pool["samples"])],
        tags=["instruction-tuning", "data-selection", "instructdiff", "arxiv:2601.23006"],
        configs=[
            {
                "config_name": name,
                "data_files": f"scores/{key}/*.parquet",
                **({"default": True} if name == first else {}),
            }
            for name, key in configs.items()
        ],
    )
    return f"---\n{data.to_yaml()}\n---\n{body.rstrip()}\n"


def settings_line(publication: Publication) -> Iterator[str]:
    """The settings, quoted for a shell, with which the scores are pulled and selected by."""
    pool, base, settings = publication.pool, publication.base_model, publication.settings
    yield _setting("data.path", pool["path"] or OMITTED)
    for name in ("subset", "split", "limit"):
        if pool[name] is not None:
            yield _setting(f"data.{name}", pool[name])
    yield _setting("model.base", base["name"] if base["commit"] else OMITTED)
    if base["commit"]:
        yield _setting("model.revision", base["commit"])
    yield _setting("cluster.precision", publication.scores[0].scorer["precision"])
    for name in ("domain", "strategy", "rounds", "seed"):
        yield _setting(name, settings[name])
    if settings["domains"]:
        yield _setting("+domains", settings["domains"])
    for part, usual in USUAL.items():
        for name, value in settings[part].items():
            if value != getattr(usual, name, None):
                yield _setting(f"{part}.{name}", value)
    # All of these, whatever a domain's or template's file brings: what is usual may change between
    # versions, and who has another file by this name has other texts.
    for part, usual in SET.items():
        for name, value in settings[part].items():
            if value is not None or getattr(usual, name, None) is not None:
                yield _setting(f"{part}.{name}", value)


def _setting(name: str, value: Any) -> str:
    return f"{name}={OMITTED}" if value == OMITTED else shlex.quote(f"{name}={_hydra(value)}")


def _hydra(value: Any) -> str:
    """A value as Hydra reads it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        plain = PLAIN.fullmatch(value) and value.lower() not in NO_TEXT
        return value if plain else _quoted(value)
    if isinstance(value, Mapping):
        items = (f"{KEY_MARKS.sub(ESCAPED, name)}: {_hydra(each)}" for name, each in value.items())
        return "{" + ",".join(items) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(_hydra, value)) + "]"
    return str(value)


def _quoted(text: str) -> str:
    """In double quotes; backslashes count before a quote alone, and at the end."""
    return '"' + re.sub(r'(\\*)("|\Z)', lambda m: m[1] * 2 + (m[2] and '\\"'), text) + '"'


def _base_model(publication: Publication) -> str:
    base = publication.base_model
    if base["commit"]:
        return f"{base['name']} at commit {base['commit']}"
    return f"{base['name']} (a local folder; content {base['identity']})"


def _model(publication: Publication, scores: PublishedScores, base: str) -> str:
    if scores.trained:
        samples = publication.models[scores.trained].samples
        return f"calibrated from it on {samples:,} samples ({scores.scorer['model']})"
    same = scores.scorer["model"] == publication.base_model["identity"]
    return base if same else f"another model (identity {scores.scorer['model']})"


def _configs(publication: Publication) -> dict[str, str]:
    """Names by which `datasets` loads the scores, and their keys."""
    count = Counter(each.name for each in publication.scores)
    return {
        each.name if count[each.name] == 1 else f"{each.name}-{each.key}": each.key
        for each in publication.scores
    }
