"""`instructdiff`: its help, its completion, and what is answered to a slip."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import fields, is_dataclass
from typing import Any

import pytest

import instructdiff_ray
from instructdiff_ray.commands import cli, help
from instructdiff_ray.commands.cli import NAMES, WITH_SETTINGS, main
from instructdiff_ray.config.run import Config

Capture = pytest.CaptureFixture[str]


def test_the_help_names_every_command_in_a_line(capsys: Capture) -> None:
    main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    for name in NAMES:
        (line,) = (line for line in lines if line.startswith(f"  {name} "))
        assert 30 < len(line) <= 100, "a summary that fits a terminal"
        assert help.docstring(name)


def test_nothing_behind_the_name_is_the_help(capsys: Capture) -> None:
    main([])
    assert "instructdiff COMMAND" in capsys.readouterr().out


def names_of(schema: Any, prefix: str = "") -> list[str]:
    names = []
    for field in fields(schema):
        value = getattr(schema, field.name)
        name = f"{prefix}{field.name}"
        names += names_of(value, f"{name}.") if is_dataclass(value) else [name]
    return names


@pytest.mark.parametrize("name", sorted(WITH_SETTINGS))
def test_the_help_of_a_command_has_its_examples_and_all_settings_with_a_meaning(
    name: str, capsys: Capture
) -> None:
    main([name, "--help"])
    out = capsys.readouterr().out
    assert re.search(rf"Examples?.*:\n  instructdiff {name}\b", out)
    assert "domain=general" in out and "medical, mixed" in out
    for setting in names_of(Config()):
        row = re.search(rf"^  {re.escape(setting)}=(\S.*)\n(.*)", out, re.MULTILINE)
        assert row, setting
        beside = re.fullmatch(r"\S* +\S.*", row[1]) and "…" not in row[1]
        assert beside or row[2].startswith(" " * help.LEFT), f"{setting} says nothing of itself"


def test_the_help_imports_neither_torch_nor_ray() -> None:
    code = (
        "import sys; from instructdiff_ray.commands.cli import main; main(['run', '--help']);"
        "assert not {'torch', 'ray', 'transformers'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["rnu"], "rnu is no command; did you mean run?"),
        (["domain=math"], "the command is missing: instructdiff run domain=math"),
        (["xyz"], "xyz is no command; `instructdiff --help` shows"),
        (["-sc"], "instructdiff -sc install=bash"),
        (["-sc", "foo"], "instructdiff -sc install=bash"),
    ],
)
def test_a_slip_ends_in_one_line(words: list[str], line: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    said = str(ended.value.code)
    assert said.startswith("error: ") and line in said and "\n" not in said


def completed(line: str, capsys: Capture, patch: pytest.MonkeyPatch) -> list[str]:
    patch.setenv("COMP_LINE", line)
    patch.setattr(sys, "argv", ["instructdiff"])
    cli.complete(["query=bash"])
    return capsys.readouterr().out.split()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("instructdiff ca", ["calibrate"]),
        ("instructdiff run select.rat", ["select.ratio="]),
        ("instructdiff run domain=m", ["domain=math", "domain=medical", "domain=mixed"]),
        ("instructdiff score domain=math cluster=one", ["cluster=one_gpu"]),
        ("instructdiff sweep rou", ["rounds="]),
        ("instructdiff push outp", []),
    ],
)
def test_commands_and_settings_are_completed(
    line: str, expected: list[str], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert completed(line, capsys, monkeypatch) == expected


def test_the_first_word_is_a_command(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    assert completed("instructdiff ", capsys, monkeypatch) == NAMES


def test_options_stand_anywhere(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["instructdiff"])
    with pytest.raises(SystemExit) as ended:
        main(["run", "domain=code", "--cfg", "job", "seed=3"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert "domain: code" in out and "seed: 3" in out


def test_the_package_is_the_command_too() -> None:
    words = [sys.executable, "-m", "instructdiff_ray", "--version"]
    version = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert version == f"{instructdiff_ray.__version__}\n"
