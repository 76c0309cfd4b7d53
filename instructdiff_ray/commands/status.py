"""How a run stands or how it ended: `instructdiff status RUN_DIR`.

From any machine that can read its folder. Prints its stages, speed, expected end and when it was
last heard of. Exit status 0 if it runs or has finished; 1 if it failed, was not heard of for long,
or is none.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from datetime import UTC, datetime

from instructdiff_ray.errors import UserError
from instructdiff_ray.results.status import FINISHED, RUNNING, run_status
from instructdiff_ray.storage.filesystem import Folder, absolute


def main(arguments: Sequence[str]) -> None:
    parser = ArgumentParser(
        prog="instructdiff status", description=__doc__, formatter_class=RawDescriptionHelpFormatter
    )
    parser.add_argument("run_dir", help="a run's folder or URI")
    given = parser.parse_args(arguments)
    try:
        status = run_status(Folder(absolute(given.run_dir)), datetime.now(UTC))
    except (UserError, OSError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")
    print("\n".join(status.lines))
    sys.exit(0 if status.state in (RUNNING, FINISHED) else 1)
