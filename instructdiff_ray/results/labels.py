"""What the measures of a ranking are called, and their units, wherever they are shown."""

LABELS = {"delta_nll": "ΔNLL", "delta_entropy": "ΔH", "value": "value"}
UNITS = {"delta_nll": " (nats per token)", "delta_entropy": " (nats per token)", "value": ""}
# What guards look at, higher is worse.
GUARD_LABELS = {"surprise": "surprise", "ending_nll": "NLL of the end", "ifd": "IFD"}
