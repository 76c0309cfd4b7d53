"""Does a selection teach more, where it is known what each sample is worth?

`python -m benchmarks.world [small]`

A world of tasks with exact answers. A base model is trained from scratch on some of them; a pool
then holds tasks that it masters, tasks that it can learn, tasks beyond it, and samples that are
wrong in known ways. Each strategy selects a share of the pool's response tokens, a copy of the base
model is trained on the selection, and is asked held-out tasks of each skill. `small` is one size of
model, one share of noise and one ratio, over two seeds.
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context

from benchmarks.common import save
from benchmarks.world.cell import POOL, Cell, run_cell
from benchmarks.world.model import SIZES
from benchmarks.world.table import Result, check_kinds, report

# The share of noise at which every ratio is tried; at the others, the middle one.
NOISE, OTHER_NOISE = 0.05, (0.0, 0.01, 0.2)
RATIO, OTHER_RATIOS = 0.1, (0.05, 0.2)


def cells(small: bool) -> list[Cell]:
    """All base models, seed by seed."""
    if small:
        return [Cell("small", seed, ((NOISE, (RATIO,)),)) for seed in range(2)]
    settings = (
        (NOISE, (RATIO, *OTHER_RATIOS)),
        *((noise, (RATIO,)) for noise in OTHER_NOISE),
    )
    return [Cell(size, seed, settings) for seed in range(5) for size in reversed(SIZES)]


def main() -> None:
    """Run all cells and print the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("size", nargs="?", choices=["full", "small"], default="full")
    small = parser.parse_args().size == "small"
    began = time.monotonic()
    results: list[Result] = []
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as processes:
        for finished in as_completed(processes.submit(run_cell, cell) for cell in cells(small)):
            results += finished.result()
            seconds = round(time.monotonic() - began)
            # After each cell: who ends the run early has what was done.
            save(
                "world-small" if small else "world",
                {"pool": POOL, "seconds": seconds, "results": results},
            )
    print(*check_kinds(results), *report(results), sep="\n")


if __name__ == "__main__":
    main()
