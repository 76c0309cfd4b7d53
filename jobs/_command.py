"""The commands of `instructdiff` from a checkout, for `python` and `ray job submit`."""

import os
import sys

# Python puts this folder first on its path, where select.py would hide Python's own `select`.
sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from instructdiff_ray.commands.cli import main


def run_command(name: str) -> None:
    """Run the command of this name with the arguments of this process; then exit."""
    main([name, *sys.argv[1:]])
