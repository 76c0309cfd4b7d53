"""Remove what killed runs have left in a storage: `instructdiff clean STORAGE [--delete]`.

Shows what it would remove: attempts at artifacts that no manifest names, unfinished snapshots of
scores, and parts of files, if nothing was written to them for some days. With --delete it removes
them. Finished artifacts, scores and the folders of runs stay.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence

from instructdiff_ray.errors import UserError, require
from instructdiff_ray.results.console import aligned_table
from instructdiff_ray.storage.cleanup import delete_leftover, find_leftovers
from instructdiff_ray.storage.filesystem import Folder, absolute, is_uri

DAY_S = 24 * 3600
DAYS = 7.0


def main(arguments: Sequence[str]) -> None:
    parser = ArgumentParser(
        prog="instructdiff clean", description=__doc__, formatter_class=RawDescriptionHelpFormatter
    )
    parser.add_argument("storage", help="the root of artifacts, a folder or URI")
    parser.add_argument("--delete", action="store_true", help="remove what is shown")
    parser.add_argument(
        "--days",
        type=float,
        help="leave what was written to within so many days: longer than your longest run, at least"
        f" 1 (default: {DAYS:g}; in an object store there is none)",
    )
    given = parser.parse_args(arguments)
    try:
        storage = Folder(absolute(given.storage))
        clean(storage, _days(storage, given.days), given.delete)
    except (UserError, OSError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")


def _days(storage: Folder, days: float | None) -> float:
    require(
        days is not None or not is_uri(storage.path),
        "in an object store a run that is alive can't be told from a dead one; give --days, more"
        " than your longest run takes",
    )
    days = DAYS if days is None else days
    require(days >= 1, f"--days {days:g} must be 1 or more: a run that is alive may still write")
    return days


def clean(storage: Folder, days: float, delete: bool) -> None:
    """Show the leftovers, and where asked delete them."""
    require(storage.exists(), f"{storage.path} does not exist; name the storage of your runs")
    leftovers = find_leftovers(storage, days * DAY_S)
    if not leftovers:
        print(f"nothing to remove in {storage.path}")
        return
    rows = [["left by a killed run", "days old", "MB"]]
    for leftover in leftovers:
        days_old, size = leftover.age_s / DAY_S, leftover.size / 1e6
        rows.append([leftover.name, f"{days_old:,.0f}", f"{size:,.1f}"])
    print(aligned_table(rows, text_columns=1))
    if not delete:
        total = sum(leftover.size for leftover in leftovers)
        print(f"\n{total / 1e6:,.1f} MB in all; give --delete to remove them")
        return
    removed = [leftover for leftover in leftovers if delete_leftover(storage, leftover)]
    print(f"\nremoved {sum(leftover.size for leftover in removed) / 1e6:,.1f} MB")
    if len(removed) < len(leftovers):
        print(f"{len(leftovers) - len(removed)} stay: a run has taken them up meanwhile")
