"""InstructDiff on Ray: pick the share of an instruction pool that teaches a model most."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from instructdiff_ray.api import Selection, select

__all__ = ["Selection", "select"]


def __getattr__(name: str) -> Any:
    """The public names, imported when they are asked for: every worker imports this package."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from instructdiff_ray import api

    return getattr(api, name)
