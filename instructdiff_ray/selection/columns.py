"""What samples are selected by, a column each, in the order of sample_id. The columns are on disk:
of a hundred million samples they are 3.4 GB, of which a ranking works on one at a time."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO

import numpy as np
import pyarrow as pa

from instructdiff_ray.config.selection import SelectConfig
from instructdiff_ray.pool.partition import among, id_array
from instructdiff_ray.pool.pool import Pool
from instructdiff_ray.scoring.spec import ScoreTable
from instructdiff_ray.selection.batches import RankingInputs, complete, scored_batches
from instructdiff_ray.selection.guards import GUARDS
from instructdiff_ray.selection.select import EXCLUDED, FATES
from instructdiff_ray.selection.strategies import (
    StrategyBatch,
    delta_entropy,
    delta_nll,
    delta_ppl,
)

# What excludes a sample: the strategy's own rule, an option, or a guard.
STRATEGY, WARMUP = "strategy", "warmup"
EXCLUDED_BY = (STRATEGY, WARMUP, *GUARDS)


def _temporary_file() -> IO[bytes]:
    """In TMPDIR, or in /var/tmp, for /tmp is memory on many machines."""
    named = (os.environ.get("TMPDIR"), "/var/tmp")
    folder = next((path for path in named if path and os.path.isdir(path)), None)
    return tempfile.TemporaryFile(dir=folder)


@dataclass(frozen=True)
class ColumnFile:
    """A column that grows by batches in a file without a name, and is then an array that is mapped
    from it. On a disk its pages are the kernel's to drop; the space is free when the array is.

    OSError where the disk is full: written as files are, for a mapping that has no room would end
    the process.
    """

    dtype: np.dtype
    file: IO[bytes] = field(default_factory=_temporary_file)

    def append(self, values: np.ndarray) -> None:
        self.file.write(np.ascontiguousarray(values, self.dtype).data)

    def array(self) -> np.ndarray:
        """All values. Writing into it changes the file's pages and nothing else."""
        with self.file as file:
            file.flush()
            if not file.tell():  # no file of no bytes can be mapped
                return np.empty(0, self.dtype)
            return np.memmap(file, self.dtype, "r+")


def read_columns(
    pool: Pool, scores: Mapping[str, ScoreTable], inputs: RankingInputs
) -> tuple[dict[str, np.ndarray], list[str]]:
    """The columns, without the samples that have no scores, and the domains' names by number:
    `domain` and `response_tokens` int32; `inputs.measures`, the guards' measures, and where the
    filter cuts by something else than ΔNLL `filter_value`, fp64; `decided` and `excluded_by` int8,
    numbers in FATES and EXCLUDED_BY or −1."""
    files: dict[str, ColumnFile] = {}
    domains: dict[str, int] = {}
    for batch in scored_batches(pool, scores, inputs, _index_columns(inputs), []):
        for name, values in _batch_columns(complete(batch, inputs), inputs, domains).items():
            if name not in files:
                files[name] = ColumnFile(values.dtype)
            files[name].append(values)
    return {name: file.array() for name, file in files.items()}, list(domains)


def _batch_columns(
    batch: StrategyBatch, inputs: RankingInputs, domains: dict[str, int]
) -> dict[str, np.ndarray]:
    numbers, values = _domain_numbers(batch.index, domains), _values(batch, inputs)
    configs = [inputs.select(name) for name in domains]
    decided, excluded_by = _decided(batch, values[inputs.measures[-1]], inputs, configs, numbers)
    return {
        "domain": numbers,
        "response_tokens": batch.index["response_tokens"].to_numpy(),
        **values,
        **{GUARDS[name].measure: GUARDS[name].value(batch) for name in inputs.guards},
        "decided": decided,
        "excluded_by": excluded_by,
    }


def _domain_numbers(index: pa.Table, domains: dict[str, int]) -> np.ndarray:
    """Each row's domain as its number in `domains`, which takes in new ones."""
    column = index["domain"].combine_chunks()
    numbers = [domains.setdefault(name, len(domains)) for name in column.dictionary.to_pylist()]
    return np.array(numbers, np.int32)[column.indices.to_numpy()]


def _index_columns(inputs: RankingInputs) -> list[str]:
    """Not the ids, if they are not needed: they are most of the bytes, and the order is the same
    by construction."""
    columns = ["domain", "response_tokens"]
    if inputs.strategy.calibrates:
        return columns if inputs.warmup is None else ["sample_id", *columns]
    return ["sample_id", *columns, "instruction_tokens"]


def _values(batch: StrategyBatch, inputs: RankingInputs) -> dict[str, np.ndarray]:
    """`inputs.measures`, and `filter_value` where the filter cuts by something else than ΔNLL."""
    if not inputs.strategy.calibrates:
        return {"value": inputs.strategy.value(batch)}
    values = {"delta_nll": delta_nll(batch), "delta_entropy": delta_entropy(batch)}
    return values if inputs.filter == "nll" else {**values, "filter_value": delta_ppl(batch)}


def _decided(
    batch: StrategyBatch,
    values: np.ndarray,
    inputs: RankingInputs,
    configs: Sequence[SelectConfig],
    domains: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """The fates of samples that are never selected, and what excludes them, as numbers in FATES and
    EXCLUDED_BY: by the strategy's own rule or as part of the warm-up subset; −1 for all others."""
    decided, excluded_by = (np.full(len(domains), -1, np.int8) for _ in range(2))
    if inputs.strategy.below is not None:
        never = ~(values < inputs.strategy.below)
        decided[never] = FATES.index(inputs.strategy.never_selected)
        excluded_by[never] = EXCLUDED_BY.index(STRATEGY)
    if inputs.warmup is not None:
        wanted = np.array([config.exclude_warmup for config in configs], bool)[domains]
        in_warmup = wanted & among(id_array(batch.index), inputs.warmup)
        decided[in_warmup] = FATES.index(EXCLUDED)
        excluded_by[in_warmup] = EXCLUDED_BY.index(WARMUP)
    return decided, excluded_by
