"""Near-duplicates in the whole pool, on the cluster: a sample goes that is like an earlier one that
stays.

So whatever goes has one that stands for it, of the asked similarity, and a chain of samples, each
like the next, does not go but for its first. Which samples go follows from the order of the source
rows alone. Signatures are computed where a part is read; buckets are brought together by their
hash, as rows are by their id, and give a forest of candidates; those of a tree, with their
shingles, are compared by one task, or a large tree's by several. No process holds more texts than
a part's at a time, and no bucket costs more than its members.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from instructdiff_ray.pool.dataset import duplicates_in
from instructdiff_ray.pool.pool import DUPLICATES
from instructdiff_ray.pool.similarity import (
    band_count,
    buckets,
    compared_text,
    components,
    find_alike,
    sets_of,
    shingles,
    split_sets,
)
from instructdiff_ray.pool.tasks import results, task
from instructdiff_ray.storage.filesystem import Folder

# A task reads so many parts at most, and of a small pool as many as make so many tasks.
PARTS_PER_TASK, READING_TASKS = 256, 32
# What is brought together in a task: entries of buckets, 16 bytes each, and samples to be compared.
BUCKETS_PER_TASK = 1 << 22
COMPARED_PER_TASK = 1 << 15
FORESTS_PER_TASK = 16
# A row's place in the source order is its part's number, then its own.
ROW_BITS = 32
SETS = pa.schema(
    [("place", pa.int64()), ("sample_id", pa.string()), ("shingles", pa.list_(pa.uint64()))]
)
Part = tuple[int, str]


def find_near_duplicates(
    parts: Sequence[str], samples: int, repeats: pa.Table, similarity: float, folder: Folder
) -> pa.Table:
    """The samples that go, as DUPLICATES in source order: `sample_id` is that of the sample that
    stays for it, and `repeat` 0.

    parts: names of the parts, in source order; samples: how many are in them; repeats: exact
    duplicates, as DUPLICATES, which are no samples.
    """
    size = min(PARTS_PER_TASK, max(1, math.ceil(len(parts) / READING_TASKS)))
    numbered = list(enumerate(parts))
    pieces = [numbered[start : start + size] for start in range(0, len(parts), size)]
    left_out = ray.put(repeats)
    groups, chains = _find_candidates(pieces, samples, left_out, similarity, folder)
    if not chains:
        return DUPLICATES.empty_table()
    read = task(_read_sets, outputs=sum(chains))
    sets = [_listed(read(piece, left_out, groups, sum(chains), folder)) for piece in pieces]
    by_group = iter([*each] for each in zip(*sets, strict=True))
    found = [
        going
        for length in chains
        for going in _start_comparisons([*islice(by_group, length)], similarity)
    ]
    tables = results(found, before=[each[0] for each in sets])
    in_order = [("part", "ascending"), ("row", "ascending")]
    return pa.concat_tables(tables).sort_by(in_order).combine_chunks()


def _find_candidates(
    pieces: Sequence[Sequence[Part]],
    samples: int,
    left_out: ray.ObjectRef,
    similarity: float,
    folder: Folder,
) -> tuple[ray.ObjectRef, list[int]]:
    """Which samples share buckets: the group of each, as `_grouped`, and the lengths of chains."""
    count = 1
    while count * BUCKETS_PER_TASK < samples * band_count(similarity):
        count *= 2
    read = task(_read_buckets, outputs=count)
    entries = [_listed(read(piece, left_out, similarity, count, folder)) for piece in pieces]
    forests = [task(_forest)(*(each[n] for each in entries)) for n in range(count)]
    first = [each[0] for each in entries] + forests
    while len(forests) > 1:
        starts = range(0, len(forests), FORESTS_PER_TASK)
        forests = [task(_merged)(*forests[start : start + FORESTS_PER_TASK]) for start in starts]
    groups, chains = task(_grouped, outputs=2)(forests[0], COMPARED_PER_TASK)
    return groups, results([chains], before=first)[0]


def _listed(references: Any) -> list[ray.ObjectRef]:
    """What a task of several outputs, or of one, gave."""
    return references if isinstance(references, list) else [references]


def _read_texts(
    parts: Sequence[Part], left_out: pa.Table, folder: Folder, wanted: np.ndarray | None = None
) -> Iterator[tuple[np.ndarray, pa.Array, list[str]]]:
    """Of each part its samples' places, ids and texts. wanted: the places of those that are."""
    for number, name in parts:
        first = number << ROW_BITS
        if wanted is not None:
            ends = np.searchsorted(wanted, [first, first + (1 << ROW_BITS)])
            of_part = wanted[slice(*ends)]
            if not len(of_part):
                continue
        table = folder.read_table(name, ["sample_id", "parts", "reason"])
        keep = np.array(pc.is_null(table["reason"]))
        keep[duplicates_in(left_out, number)["row"].to_numpy()] = False
        if wanted is not None:
            keep &= np.isin(first + np.arange(len(keep)), of_part)
        places = first + np.flatnonzero(keep)
        kept = table.filter(pa.array(keep))
        texts = [compared_text(parts) for parts in kept["parts"].to_pylist()]
        yield places, kept["sample_id"].combine_chunks(), texts


def _read_buckets(
    parts: Sequence[Part], left_out: pa.Table, similarity: float, count: int, folder: Folder
) -> Any:
    """The buckets of these parts' samples with their places, `count` tables by the buckets' hash;
    one alone is no tuple."""
    hashes, places = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
    for of_part, _, texts in _read_texts(parts, left_out, folder):
        sets = shingles(texts)
        of_texts = buckets(sets, similarity)[sets.sizes > 0]
        hashes.append(of_texts.reshape(-1))
        places.append(np.repeat(of_part[sets.sizes > 0], of_texts.shape[1]))
    hashed, placed = np.concatenate(hashes), np.concatenate(places)
    # The upper half is as random as all of it, and a power of two divides it evenly.
    numbers = ((hashed >> np.uint64(32)) * np.uint64(count)) >> np.uint64(32)
    order = np.argsort(numbers, kind="stable")
    ends = np.searchsorted(numbers[order], np.arange(count + 1))
    tables = tuple(
        pa.table({"bucket": hashed[order[a:b]], "place": placed[order[a:b]]})
        for a, b in zip(ends, ends[1:], strict=False)
    )
    return tables[0] if count == 1 else tables


def _forest(*tables: pa.Table) -> pa.Table:
    """Which samples share some of these buckets: each with the first that it is connected with. Of
    a bucket only its first and each of the others are an edge, so none costs more than it has."""
    entries = pa.concat_tables(tables).combine_chunks()
    hashes, places = entries["bucket"].to_numpy(), entries["place"].to_numpy()
    order = np.lexsort((places, hashes))
    hashes, places = hashes[order], places[order]
    starts = np.append(True, hashes[1:] != hashes[:-1])[: len(hashes)]
    firsts = places[np.maximum.accumulate(np.where(starts, np.arange(len(places)), 0))]
    return _trees(places[~starts], firsts[~starts])


def _merged(*forests: pa.Table) -> pa.Table:
    edges = pa.concat_tables(forests).combine_chunks()
    return _trees(edges["place"].to_numpy(), edges["root"].to_numpy())


def _trees(first: np.ndarray, second: np.ndarray) -> pa.Table:
    places, roots = components(first, second)
    return pa.table({"place": places, "root": roots})


def _grouped(forest: pa.Table, most: int) -> tuple[pa.Table, list[int]]:
    """The samples that are compared, sorted by place, each with the number of its group; and the
    number of groups of each chain. Small trees share a group, and a chain of one; one of more than
    `most` samples has a chain of groups, each compared with those that stay of the ones before."""
    places, roots = forest["place"].to_numpy(), forest["root"].to_numpy()
    order = np.lexsort((places, roots))
    starts = np.flatnonzero(np.append(True, np.diff(roots[order]) != 0)[: len(order)])
    sizes = np.diff(np.append(starts, len(order)))
    large = sizes > most
    packed = (np.cumsum(np.where(large, 0, sizes)) - 1) // most
    packed = np.unique(packed[~large], return_inverse=True)[1]
    chains = [1] * int(packed.max(initial=-1) + 1)
    groups = np.empty(len(order), np.int32)
    groups[np.repeat(~large, sizes)] = np.repeat(packed, sizes[~large])
    for start, size in zip(starts[large], sizes[large], strict=True):
        numbers = np.arange(size) // most
        groups[start : start + size] = sum(chains) + numbers
        chains.append(int(numbers[-1]) + 1)
    table = pa.table({"place": places[order], "group": groups})
    return table.sort_by("place").combine_chunks(), chains


def _read_sets(
    parts: Sequence[Part], left_out: pa.Table, groups: pa.Table, count: int, folder: Folder
) -> Any:
    """The shingles of these parts' samples that are compared, a table of SETS for each group; one
    alone is no tuple."""
    wanted, numbers = groups["place"].to_numpy(), groups["group"].to_numpy()
    tables = [SETS.empty_table()]
    for places, ids, texts in _read_texts(parts, left_out, folder, wanted):
        sets = sets_of(shingles(texts))
        ends = np.cumsum([0, *map(len, sets)], dtype=np.int32)
        lists = pa.ListArray.from_arrays(ends, np.concatenate(sets))
        tables.append(pa.table([places, ids, lists], schema=SETS))
    table = pa.concat_tables(tables).combine_chunks()
    of = numbers[np.searchsorted(wanted, table["place"].to_numpy())]
    split = tuple(table.filter(pa.array(of == number)) for number in range(count))
    return split[0] if count == 1 else split


def _start_comparisons(
    groups: Sequence[Sequence[ray.ObjectRef]], similarity: float
) -> list[ray.ObjectRef]:
    """Who goes of the groups of a chain, each the tables of its readers: a group loses what is like
    those that stay of each group before it, and then what is like others of its own. So it comes
    out as it would in one task, and no task holds more than two groups."""
    compare, left, found = task(_compare, outputs=2), [*groups], []
    for number in range(len(left)):
        going, staying = compare(None, similarity, *left[number])
        found.append(going)
        for later in range(number + 1, len(left)):
            going, rest = compare(staying, similarity, *left[later])
            left[later] = [rest]
            found.append(going)
    return found


def _compare(
    staying: pa.Table | None, similarity: float, *tables: pa.Table
) -> tuple[pa.Table, pa.Table]:
    """Which samples of a group go, as DUPLICATES, and the rest of it, both in source order.

    staying: of a group before, with which these are compared; None: with one another.
    """
    earlier = None if staying is None else staying.num_rows
    group = pa.concat_tables(tables).sort_by("place")
    samples = pa.concat_tables(
        [SETS.empty_table() if staying is None else staying, group]
    ).combine_chunks()
    lists = samples["shingles"].combine_chunks()
    starts = np.append(0, np.cumsum(pc.list_value_length(lists).to_numpy()))
    sets = split_sets(pc.list_flatten(lists).to_numpy(), starts)
    alike = find_alike(sets, similarity, earlier)
    places = samples["place"].to_numpy()[alike >= 0]
    going = pa.table(
        [
            (places >> ROW_BITS).astype(np.int32),
            (places & ((1 << ROW_BITS) - 1)).astype(np.int32),
            samples["sample_id"].take(pa.array(alike[alike >= 0])),
            np.zeros(len(places), np.int32),
        ],
        schema=DUPLICATES,
    )
    rest = samples.filter(pa.array((alike < 0) & (np.arange(len(alike)) >= (earlier or 0))))
    return going, rest.combine_chunks()
