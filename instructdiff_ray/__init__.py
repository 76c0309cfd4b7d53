"""InstructDiff on Ray: pick the share of an instruction pool that teaches a model most."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from instructdiff_ray.api import Selection, select
    from instructdiff_ray.errors import UserError

__version__ = "0.1.0"
__all__ = ["Selection", "UserError", "select"]


def __getattr__(name: str) -> Any:
    """The public names, imported when they are asked for: every worker imports this package."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from instructdiff_ray import api

    return getattr(api, name)
