"""What is measured, against what; the last results lie beside it in `results/`."""
