"""`instructdiff COMMAND …`: finds the command, its help and its completion.

The work is in the module of the command's name. Nothing of the library is imported before it is
known what is wanted: torch and Ray take seconds.
"""

from __future__ import annotations

import difflib
import importlib
import os
import re
import sys
from collections.abc import Sequence

from instructdiff_ray import __version__

# In the order in which the help shows them.
COMMANDS = {
    "The method, whole and by stages": ("run", "ingest", "calibrate", "score", "select"),
    "Before and while it runs": ("plan", "sweep", "status"),
    "What a selection is worth": ("compare", "finetune", "evaluate"),
    "Results and storage": ("push", "scores", "clean"),
}
NAMES = [name for names in COMMANDS.values() for name in names]
# Those that take the settings of conf/, in Hydra's words; the others have a few arguments.
WITH_SETTINGS = {"run", "ingest", "calibrate", "score", "select", "plan", "finetune", "evaluate"}
HELP = {"-h", "--help"}
COMPLETION = {"-sc", "--shell-completion"}
SHELLS = re.compile("(install|uninstall|query)=(bash|zsh|fish)")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command that the arguments name (None: those of this process), and exit."""
    name, *rest = [*(sys.argv[1:] if arguments is None else arguments)] or ["--help"]
    if name in HELP:
        from instructdiff_ray.commands.help import all_commands

        print(all_commands(COMMANDS))
    elif name == "--version":
        print(__version__)
    elif name in COMPLETION:
        complete(rest)
    elif name not in NAMES:
        sys.exit(f"error: {unknown_command(name)}")
    elif name in WITH_SETTINGS and HELP & {*rest}:
        from instructdiff_ray.commands.help import command_with_settings

        print(command_with_settings(name))
    else:
        importlib.import_module(f"instructdiff_ray.commands.{name}").main(rest)


def unknown_command(name: str) -> str:
    """The line that says so, and what may have been meant."""
    if "=" in name:
        return f"{name} is a setting, and the command is missing: instructdiff run {name} …"
    near = difflib.get_close_matches(name, NAMES, n=1)
    advice = f"did you mean {near[0]}?" if near else "`instructdiff --help` shows all of them"
    return f"{name} is no command; {advice}"


def complete(words: Sequence[str]) -> None:
    """Print what may stand next on the shell's line (COMP_LINE), or what installs the completion.

    words: as Hydra takes them, `install=bash`, `query=bash`; zsh takes bash's, fish its own.
    """
    if len(words) != 1 or not SHELLS.fullmatch(words[0]):
        sys.exit("error: say for which shell: instructdiff -sc install=bash (or zsh, fish)")
    line = os.environ.get("COMP_LINE", "").split(" ")
    if words[0].startswith("query="):
        if len(line) <= 2:  # the command itself
            print("\n".join(name for name in NAMES if name.startswith(line[-1])))
            return
        if line[1] not in {*WITH_SETTINGS, "sweep"}:
            return
        os.environ["COMP_LINE"] = " ".join([line[0], *line[2:]])
    from instructdiff_ray.commands.settings import call_hydra

    call_hydra(lambda settings: None, ["--shell-completion", *words])
