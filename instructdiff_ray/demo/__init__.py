"""A made-up instruction pool and a small language model, so that the demo needs no download."""
