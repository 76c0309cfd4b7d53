"""How alike the selections of finished runs are: `instructdiff compare RUN_A RUN_B …`.

Prints overlap, recall both ways, Jaccard index and rank correlation of ΔH, by domain, and draws a
heat map.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence

from instructdiff_ray.errors import UserError
from instructdiff_ray.results.compare import as_rows, compare, heat_map
from instructdiff_ray.results.console import aligned_table
from instructdiff_ray.storage.filesystem import Folder, absolute, join


def main(arguments: Sequence[str]) -> None:
    parser = ArgumentParser(
        prog="instructdiff compare",
        description=__doc__,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", nargs="+", help="a run's folder or URI; two or more")
    parser.add_argument("--output", default=".", help="where overlap.png goes (default: here)")
    given = parser.parse_args(arguments)
    if len(given.run) < 2:
        parser.error("name two runs or more")
    try:
        comparisons = compare([absolute(path) for path in given.run])
        folder = Folder(absolute(given.output))
        folder.write_bytes("overlap.png", heat_map(comparisons))
    except (UserError, OSError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")
    print(aligned_table(as_rows(comparisons), text_columns=3))
    print(f"\nheat map  {join(folder.path, 'overlap.png')}")
