"""What the measures of a ranking are called, their units, and how values are written, wherever they
are shown."""

LABELS = {"delta_nll": "ΔNLL", "delta_entropy": "ΔH", "value": "value"}
UNITS = {"delta_nll": " (nats per token)", "delta_entropy": " (nats per token)", "value": ""}
# What guards look at, higher is worse.
GUARD_LABELS = {"surprise": "surprise", "ending_nll": "NLL of the end", "ifd": "IFD"}


def written(value: float | None) -> str:
    """A value in nine characters at most: a baseline's may be of any size, a random draw's is one
    of 64 bits."""
    if value is None:
        return "–"
    size = abs(value)
    return f"{value:{'.3f' if size < 1e4 else '.0f' if size < 1e8 else '.2e'}}"
