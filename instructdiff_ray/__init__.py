"""InstructDiff on Ray: pick the share of an instruction pool that teaches a model most."""
