"""Pools of which too much was rejected, and what is said where their columns are not known."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pyarrow.compute as pc

from instructdiff_ray.errors import UserError
from instructdiff_ray.pool.cleaning import REASONS
from instructdiff_ray.pool.pool import REJECTS_FILE, Pool
from instructdiff_ray.pool.schemas import suggest_columns
from instructdiff_ray.storage.filesystem import Folder

UNKNOWN = "unknown_schema"
WELL = ("duplicate", *REASONS)
LOOKED_AT, SHOWN, VALUE_CHARACTERS, ROW_CHARACTERS = 100, 3, 40, 200


def check_rejects(pool: Pool, limit: float, later: Mapping[str, int] | None = None) -> None:
    """Raises UserError where more than this share of all rows read was rejected.

    later: rejects of later stages, by reason. Duplicates and what `clean` leaves out don't count:
        nothing is wrong with them.
    """
    rejected = Counter(pool.counts["rejected"]) + Counter(later or {})
    bad = {reason: count for reason, count in rejected.items() if reason not in WELL}
    read = pool.counts["read"]
    if sum(bad.values()) > limit * read:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in bad.items())
        advice = column_hint(pool.folder, bad) or (
            f"look at {pool.folder.path}/{REJECTS_FILE} (and for what could not be scored at the"
            " rows with a reason in storage/pieces), and raise it if they may go"
        )
        raise UserError(
            f"{sum(bad.values()):,} of {read:,} rows were rejected ({reasons}), more than"
            f" data.max_reject_ratio={limit:g}; {advice}"
        )


def column_hint(folder: Folder, rejected: Mapping[str, int]) -> str | None:
    """The columns of the rows that are of no known schema, a guess at `data.columns` and the first
    rows, in one line; None where most rejects have another reason.

    folder: of the pool, with its rejects; rejected: their number by reason.
    """
    if rejected.get(UNKNOWN, 0) * 2 <= sum(rejected.values()):
        return None
    groups = folder.read_row_groups(REJECTS_FILE, ["reason", "source"])
    unknown = (group.filter(pc.equal(group["reason"], UNKNOWN))["source"] for group in groups)
    sources = next(filter(len, unknown)).slice(0, LOOKED_AT).to_pylist()
    rows = [row for row in map(_parsed, sources) if row]
    if not rows:  # all are too long for the rejects to hold them whole
        return None
    names = ", ".join(dict.fromkeys(name for row in rows for name in row))
    samples = " ".join(map(_shortened, rows[:SHOWN]))
    suggestion = suggest_columns(rows) or {"instruction": "…", "response": "…"}
    columns = ", ".join(f"{part}: {_quoted(name)}" for part, name in suggestion.items())
    guess = "perhaps" if "…" not in suggestion.values() else "as in"
    return (
        f"their columns are {names}; say which hold what is asked and answered, {guess}"
        f" 'data.columns={{{columns}}}'; the first rows: {samples}"
    )


def _parsed(source: str) -> dict[str, Any] | None:
    try:
        row = json.loads(source)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def _shortened(row: Mapping[str, Any]) -> str:
    """A row with the beginning of each value."""
    short = {name: _cut(value, VALUE_CHARACTERS) for name, value in row.items()}
    return _cut(json.dumps(short, ensure_ascii=False), ROW_CHARACTERS)


def _cut(value: Any, characters: int) -> Any:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return value if len(text) <= characters else text[:characters] + "…"


def _quoted(name: str) -> str:
    """A name as Hydra takes it as a value."""
    return name if re.fullmatch(r"[\w.…-]+", name) else json.dumps(name, ensure_ascii=False)
