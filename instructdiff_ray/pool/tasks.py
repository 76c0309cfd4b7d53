"""Work on the cluster that is no stream of blocks: results of Ray tasks, and rows brought together
by partition."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, TypeVar

import pyarrow as pa
import ray
from ray.exceptions import GetTimeoutError, RayError

from instructdiff_ray.errors import user_error_in
from instructdiff_ray.pool.partition import split_by_partition
from instructdiff_ray.resources import machines_for, patience_s

Result = TypeVar("Result")


def task(
    function: Callable[..., Any], outputs: int = 1, work: Callable[..., Any] | None = None
) -> Callable[..., Any]:
    """What starts this function as a Ray task that needs no GPU, and gives a reference to its
    result, or a list of as many as `outputs`. work: what it does in truth, after which Ray's
    dashboard calls it."""
    named = work or function
    while isinstance(named, partial):
        named = named.func
    name = f"{named.__module__.rpartition('.')[2]}.{named.__name__.lstrip('_')}"
    options: dict[str, Any] = {"name": name, "label_selector": machines_for(gpus=0)}
    return ray.remote(num_returns=outputs, **options)(function).remote


def run_tasks(function: Callable[..., Result], parts: Iterable[Sequence[Any]]) -> list[Result]:
    """What this function makes of each part's arguments: as Ray tasks, or where no Ray runs in this
    process."""
    if not ray.is_initialized():
        return [function(*part) for part in parts]
    start = task(function)
    return results([start(*part) for part in parts])


def results(refs: Iterable[ray.ObjectRef], before: Sequence[ray.ObjectRef] = ()) -> list[Any]:
    """What these tasks gave. What is a UserError to a task, or the end of a machine's disk or
    memory, or of the run's patience, is a UserError here. before: what these wait for themselves,
    whose progress counts too."""
    try:
        return _all_of(list(refs), before)
    except RayError as error:
        if user_error := user_error_in(error):
            raise user_error from error
        raise


def _all_of(refs: list[ray.ObjectRef], before: Sequence[ray.ObjectRef]) -> list[Any]:
    """Raises GetTimeoutError where none of them ends in a time of the run's patience."""
    counted, ended = [*before, *refs], 0
    while True:
        try:
            return list(ray.get(refs, timeout=patience_s()))
        except GetTimeoutError:
            last = ended
            done, _ = ray.wait(counted, num_returns=len(counted), timeout=0, fetch_local=False)
            ended = len(done)
            if ended == last:
                raise


def for_each_partition(
    tables: Sequence[ray.ObjectRef], count: int, work: Callable[[int, pa.Table], Result]
) -> list[Result]:
    """What `work` makes of each partition's number and rows. tables: have a sample_id.

    Each task that splits a table gives a part to each partition, and parts below 100 KB travel by
    way of the driver: so tables should have at least as many rows as a partition.
    """
    split, gather = task(_split, count), task(_gather, work=work)
    parts = [split(table, count) for table in tables]
    gathered = []
    for number in range(count):
        of_partition = parts if count == 1 else [each[number] for each in parts]
        gathered.append(gather(work, number, *of_partition))
    return results(gathered, before=parts if count == 1 else [each[0] for each in parts])


def _split(table: pa.Table, count: int) -> Any:
    parts = split_by_partition(table, count)
    return parts[0] if count == 1 else tuple(part.combine_chunks() for part in parts)


def _gather(work: Callable[[int, pa.Table], Result], number: int, *parts: pa.Table) -> Result:
    return work(number, pa.concat_tables(parts).combine_chunks())
