"""What the name of a file says: whether it is a data file, and of which format."""

from __future__ import annotations

from instructdiff_ray.errors import UserError
from instructdiff_ray.pool.readers import FORMAT_OF
from instructdiff_ray.pool.source import COMPRESSED, extension


def is_data_file(name: str, format: str | None = None) -> bool:
    """Whether a file in a folder is read, by its name relative to that: hidden ones, `_SUCCESS` and
    such are passed over, and those of no known format unless one is set."""
    hidden = any(piece.startswith((".", "_")) for piece in name.split("/"))
    return not hidden and (format is not None or extension(name) in FORMAT_OF)


def format_of(path: str) -> str:
    """The format of a file. UserError where its name does not tell."""
    ending = extension(path)
    if ending not in FORMAT_OF:
        raise UserError(
            f"data.path={path}: unknown format {ending or '(no extension)'}; known are"
            f" {', '.join(FORMAT_OF)} (each may be {', '.join(COMPRESSED)}), or set data.format"
        )
    return FORMAT_OF[ending]
