"""What `instructdiff --help` and `instructdiff COMMAND --help` print.

A command's help is the docstring of its module; the settings' are those of the dataclasses in
config/, with the defaults of conf/.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from instructdiff_ray.commands.settings import compose_settings, conf_folder
from instructdiff_ray.config.run import Config

WIDTH = 100  # of a line at most
LONGEST_TEXT = 30  # that is shown of a value
LEFT = 36  # columns of a setting; its meaning stands beside it
INTRODUCTION = """\
Pick the share of an instruction pool that teaches a language model most (InstructDiff, on Ray).

Usage: instructdiff COMMAND …

Start: `instructdiff run` tries the method on a small pool and model of its own, offline.
"""
ENDING = """\
`instructdiff COMMAND --help` says more of a command, with its settings and examples.
Completion of commands and settings: eval "$(instructdiff -sc install=bash)", in zsh behind
`autoload -Uz bashcompinit && bashcompinit`; in fish: instructdiff -sc install=fish | source"""
USAGE = """\
Usage: instructdiff {name} [SETTING=VALUE …] [OPTION …], in any order

Options:
  -m                  a sweep: SETTING=VALUE,VALUE runs the command with each of the values
  --config-dir FOLDER more files of settings, of yours: FOLDER/model/mine.yaml is chosen by
                      model=mine, as the files below are
  --cfg job           print the settings that would be in force, and run nothing
"""


def all_commands(names_by_group: Mapping[str, Sequence[str]]) -> str:
    """The commands by group, a line each."""
    lines = [INTRODUCTION]
    for group, names in names_by_group.items():
        lines += [f"{group}:", *(f"  {name:10} {_summary(name)}" for name in names), ""]
    return "\n".join([*lines, ENDING])


def command_with_settings(name: str) -> str:
    """What a command does, its options, and the settings that all commands share."""
    values = compose_settings([])
    lines = [f"{docstring(name)}\n", USAGE.format(name=name), "Choices, each a file of settings:"]
    lines += [_row(f"  {group}={chosen}", text) for group, chosen, text in _choices()]
    lines += ["", "Settings, with the values that they have by default:"]
    lines += _settings(Config, OmegaConf.to_container(values), "")
    return "\n".join(lines)


def docstring(name: str) -> str:
    """Of a command's module, which is not imported: its libraries would take seconds."""
    source = Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8")
    return ast.get_docstring(ast.parse(source)) or ""


def _summary(name: str) -> str:
    first, *_ = docstring(name).split("\n\n")
    return " ".join(first.split()).rstrip(".").partition(": `instructdiff")[0]


def _choices() -> Iterator[tuple[str, str, str]]:
    """Of each group of conf/: its name, what is chosen by default, and all that can be."""
    conf = Path(conf_folder())
    defaults = yaml.safe_load((conf / "config.yaml").read_text())["defaults"]
    for default in (each for each in defaults if isinstance(each, dict)):
        for group, chosen in default.items():
            names = sorted(path.stem for path in (conf / group).glob("*.yaml"))
            if names:
                yield group, chosen, ", ".join(names)


def _settings(schema: Any, values: Any, prefix: str) -> Iterator[str]:
    """The lines of a dataclass of settings, its plain ones first. values: by their names."""
    meanings, nested = _meanings(schema), []
    for field in fields(schema):
        value = values[field.name]
        if is_dataclass(kind := _type_of(schema, field.name)):
            nested.append((f"{prefix}{field.name}.", kind, value))
        else:
            left = f"  {prefix}{field.name}={_as_typed(value)}"
            yield _row(left, meanings.get(field.name, "").replace("None", "null"))
    for name, kind, value in nested:
        summary = (inspect.getdoc(kind) or "").split("\n\n")[0]
        yield from ("", *_wrapped(f"{name[:-1]}: {' '.join(summary.split())}", ""))
        yield from _settings(kind, value, name)


def _as_typed(value: Any) -> str:
    """A value as on a command line, a text cut to its beginning."""
    if isinstance(value, str):
        text = value.replace("\n", "\\n")
        return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}…"
    return json.dumps(value)


def _type_of(schema: Any, name: str) -> Any:
    """The class of a field's default: annotations are strings here."""
    return type(getattr(schema(), name))


def _meanings(schema: Any) -> dict[str, str]:
    """What a dataclass's docstring says of its fields: `name, name: text`, the text going on in
    indented lines."""
    meanings: dict[str, str] = {}
    entry = re.compile(r"^(\w+(?:, \w+)*): (.*(?:\n[ ]+.*)*)", re.MULTILINE)
    for match in entry.finditer(inspect.getdoc(schema) or ""):
        for name in match[1].split(", "):
            meanings[name] = " ".join(match[2].split())
    return meanings


def _row(left: str, text: str) -> str:
    lines = _wrapped(text, " " * LEFT)
    if not text or len(left) >= LEFT:
        return "\n".join([left, *(lines if text else [])])
    return "\n".join([left + lines[0][len(left) :], *lines[1:]])


def _wrapped(text: str, indent: str) -> list[str]:
    width = max(LEFT + 30, min(WIDTH, shutil.get_terminal_size().columns))
    return textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=indent)
