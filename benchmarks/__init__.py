"""Measurements of the library; the latest results are in `results/`."""
