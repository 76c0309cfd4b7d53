"""In which settings published scores differ from those of a command, in the words of its command
line."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from instructdiff_ray.config.run import Config
from instructdiff_ray.pool.hub_data import is_hub

ABSENT = "nothing"
OMITTED = "…"  # in the place of what names a file or folder of a machine
LONGEST_VALUE = 60
# Of what keys are made of, as the command line calls it.
NAMES = {
    "version": "the version of scoring or training",
    "rendering.encoding_version": "the version of encoding",
    "rendering.max_length": "calibrate.max_length",
    "rendering.tokenizer": "model.base",
    "model": "model.base",
    "base": "model.base",
    "precision": "cluster.precision",
}
PREFIXES = {"rendering.template.": "template.", "hyper_parameters.": "calibrate."}
# Which decide on what the first round calibrates, and on what the later ones do.
DRAWN_BY = ("seed", "calibrate.ratio", "calibrate.max_samples", "calibrate.per_domain")
SELECTED_BY = ("strategy", "select.", "domains.", "calibrate.repeats")


@dataclass(frozen=True)
class Difference:
    """setting: its name; there, here: its values."""

    setting: str
    there: str
    here: str

    def __str__(self) -> str:
        return f"{shown(self.setting)} is {self.there} there and {self.here} here"


def run_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Of a configuration, as JSON values, what is published: no path, and nothing of a machine."""
    names = ("strategy", "rounds", "seed", "domain", "domains", "template", "calibrate", "select")
    read = ("format", "columns", "domain_column", "keep_duplicates", "over_long")
    clean, baseline = config["clean"], config["baseline"]
    benchmarks = [path if is_hub(path) else OMITTED for path in clean["benchmarks"]]
    small, raters = baseline["small_model"], baseline["rating_models"]
    return {
        **{name: config[name] for name in names},
        "data": {name: config["data"][name] for name in read},
        "clean": {**clean, "benchmarks": benchmarks},
        "baseline": {"small_model": _on_hub(small), "rating_models": [*map(_on_hub, raters)]},
    }


def _on_hub(model: str) -> str:
    """A model's name; of a folder nothing, for it tells of a machine."""
    local = model.startswith(("/", ".", "~")) or model.count("/") > 1 or os.path.isdir(model)
    return OMITTED if local else model


def input_differences(
    there: Mapping[str, Any], here: Mapping[str, Any], models: tuple[str, str], base: str
) -> list[Difference]:
    """Where keys are made of different things. models: what the base models, or others that were
    scored under, are called there and here; base: the setting that names them."""
    differences = []
    for path, theirs, ours in _unequal(there, here):
        name = _setting(path)
        if name == "model.base":
            differences.append(Difference(base, *models))
        elif path == "rendering.truncate":
            how = {True: "truncate", False: "reject"}
            values = (how.get(theirs, ABSENT), how.get(ours, ABSENT))
            differences.append(Difference("data.over_long", *values))
        else:
            differences.append(Difference(name, shown(theirs), shown(ours)))
    named = [d for d in differences if d.setting == "template.name"]
    if named:  # which says what its texts are
        of_texts = "template."
        differences = [d for d in differences if not d.setting.startswith(of_texts)]
        differences.append(Difference("template", named[0].there, named[0].here))
    return [*dict.fromkeys(differences)]


def draw_differences(there: Mapping[str, Any], config: Config) -> list[Difference]:
    """Where other samples would be drawn for the first round."""
    return [
        Difference(path, shown(theirs), shown(ours))
        for path, theirs, ours in _unequal(there, run_settings(asdict(config)))
        if path in DRAWN_BY or path.startswith("domains.") and ".calibrate." in path
    ]


def selection_differences(there: Mapping[str, Any], config: Config) -> list[Difference]:
    """Where other samples would be selected, for a later round to calibrate on."""
    return [
        Difference(path, shown(theirs), shown(ours))
        for path, theirs, ours in _unequal(there, run_settings(asdict(config)))
        if path.startswith(SELECTED_BY)
    ]


def listed(differences: Iterable[Difference]) -> str:
    """In one line."""
    return "; ".join(map(str, differences))


def _setting(path: str) -> str:
    for prefix, name in PREFIXES.items():
        if path.startswith(prefix):
            return name + path.removeprefix(prefix)
    return NAMES.get(path, path)


def _unequal(there: Any, here: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The paths to what is not the same, with both values; None where one side has none."""
    groups = [each for each in (there, here) if isinstance(each, Mapping)]
    if groups and all(isinstance(each, Mapping) or each is None for each in (there, here)):
        for name in dict.fromkeys(name for group in groups for name in group):
            inner = f"{path}.{name}" if path else str(name)
            yield from _unequal((there or {}).get(name), (here or {}).get(name), inner)
    elif there != here:
        yield path, there, here


def shown(value: Any) -> str:
    """A value in a line, cut to its beginning and without control characters: a stranger may have
    written it."""
    text = ABSENT if value is None else repr(value) if isinstance(value, str) else str(value)
    line = " ".join(text.strip("'").split())
    return line if len(line) <= LONGEST_VALUE else f"{line[:LONGEST_VALUE]}…"
