"""Remove what killed runs have left in a storage: `python jobs/clean.py STORAGE [--delete]`.

Shows what it would remove: attempts at artifacts that no manifest names, and parts of files. With
--delete it removes them. Nothing that a run can use is touched.
"""

from __future__ import annotations

import argparse
import os
import sys

sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from instructdiff_ray.errors import UserError
from instructdiff_ray.progress import duration
from instructdiff_ray.results.console import aligned_table
from instructdiff_ray.storage.cleanup import find_leftovers
from instructdiff_ray.storage.filesystem import Folder, absolute

DAY_S = 24 * 3600


def main() -> None:
    parser = argparse.ArgumentParser(prog="python jobs/clean.py", description=__doc__)
    parser.add_argument("storage", help="the root of artifacts, a folder or URI")
    parser.add_argument("--delete", action="store_true", help="remove what is shown")
    parser.add_argument(
        "--days",
        type=float,
        default=7,
        help="leave what was written to within so many days, for a run may still need it"
        " (default: 7)",
    )
    given = parser.parse_args()
    try:
        clean(Folder(absolute(given.storage)), given.days, given.delete)
    except (UserError, OSError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")


def clean(storage: Folder, days: float, delete: bool) -> None:
    if not storage.exists():
        raise UserError(f"{storage.path} does not exist; name the storage of your runs")
    leftovers = find_leftovers(storage, days * DAY_S)
    total = f"{sum(leftover.size for leftover in leftovers) / 1e6:,.1f} MB"
    if not leftovers:
        print(f"nothing to remove in {storage.path}")
        return
    rows = [["left by a killed run", "untouched for", "MB"]]
    for leftover in leftovers:
        rows.append([leftover.name, duration(leftover.age_s), f"{leftover.size / 1e6:,.1f}"])
    print(aligned_table(rows, text_columns=1))
    if not delete:
        print(f"\n{total} in all; give --delete to remove them")
        return
    for leftover in leftovers:
        storage.delete(leftover.name)
    print(f"\nremoved {total}")


if __name__ == "__main__":
    main()
