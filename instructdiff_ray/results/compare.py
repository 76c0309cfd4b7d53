"""How alike the selections of finished runs are, by domain (as in Table 7 of the paper)."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from itertools import combinations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.figure import Figure

from instructdiff_ray.errors import UserError
from instructdiff_ray.pool.partition import among, id_array
from instructdiff_ray.pool.pool import Pool
from instructdiff_ray.results.status import SUMMARY
from instructdiff_ray.selection.select import SELECTED
from instructdiff_ray.storage.filesystem import Folder, absolute

ALL = "all domains"
RANKING = "ranking.parquet"


@dataclass(frozen=True)
class Comparison:
    """Two runs' selections A and B of one domain.

    common: |A ∩ B|; recall_a: the share of A that B has too, recall_b: of B that A has; jaccard:
    |A ∩ B| / |A ∪ B|; rank_correlation: Spearman's, of ΔH, over the samples that both have; NaN
    where a run has none or all are equal.
    """

    run_a: str
    run_b: str
    domain: str
    size_a: int
    size_b: int
    common: int
    recall_a: float
    recall_b: float
    jaccard: float
    rank_correlation: float


@dataclass(frozen=True)
class _Ranked:
    """A run's ranking, 45 bytes a sample.

    ids: sorted; domain: of each, its place in `domains`; delta_entropy: NaN where there is none.
    """

    name: str
    domains: list[str]
    ids: np.ndarray
    domain: np.ndarray
    selected: np.ndarray
    delta_entropy: np.ndarray

    def of(self, domain: str) -> np.ndarray:
        """A mask: which samples are of the domain."""
        if domain == ALL:
            return np.full(len(self.ids), True)
        return self.domain == self.domains.index(domain)


def compare(paths: Sequence[str]) -> list[Comparison]:
    """Every pair of runs, in every domain that both have, and in all.

    Raises UserError where a folder holds no finished run, or two runs have no sample in common.
    """
    runs = [_read(path, name) for path, name in zip(paths, _names(paths), strict=True)]
    return [comparison for a, b in combinations(runs, 2) for comparison in _compare_two(a, b)]


def _names(paths: Sequence[str]) -> list[str]:
    """The shortest ends of the paths that tell them apart."""
    parts = [path.rstrip("/").split("/") for path in paths]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-count:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise UserError("the same run is named twice")


def _strategy_of(folder: Folder) -> str:
    summary = folder.read_bytes(SUMMARY)
    if summary is None:
        raise UserError(
            f"{folder.path} holds no finished run; name a run's folder, with {SUMMARY} in it"
        )
    return str(json.loads(summary)["strategy"])


def _read(path: str, name: str) -> _Ranked:
    folder = Folder(path)
    strategy, domains = _strategy_of(folder), dict[str, int]()
    groups = []
    for table in folder.read_row_groups(RANKING, ["sample_id", "domain", "fate", "delta_entropy"]):
        names = table["domain"].combine_chunks().dictionary_encode()
        codes = [domains.setdefault(d, len(domains)) for d in names.dictionary.to_pylist()]
        entropy = table["delta_entropy"].to_numpy(zero_copy_only=False).astype(float)
        numbers = np.array(codes, np.int32)[names.indices.to_numpy()]
        groups.append((id_array(table), numbers, _selected(table), entropy))
    ids, domain, selected, entropy = (
        np.concatenate(columns) for columns in zip(*groups, strict=True)
    )
    return _Ranked(f"{name} {strategy}", list(domains), ids, domain, selected, entropy)


def _selected(table: pa.Table) -> np.ndarray:
    mask = pc.equal(table["fate"], SELECTED)
    return np.asarray(mask.to_numpy(zero_copy_only=False), dtype=bool)


def selection_of(path: str, pool: Pool) -> list[str]:
    """The ids that a finished run has selected, sorted. UserError where some are not of this
    pool."""
    folder = Folder(absolute(path))
    _strategy_of(folder)
    tables = folder.read_row_groups(RANKING, ["sample_id", "fate"])
    chosen = np.sort(np.concatenate([id_array(table)[_selected(table)] for table in tables]))
    known = sum(int(among(id_array(table), chosen).sum()) for table in pool.index(["sample_id"]))
    if known < len(chosen):
        raise UserError(
            f"{len(chosen) - known:,} of the {len(chosen):,} samples that {path} has selected are"
            " not in this pool; give data.path and the settings of that run"
        )
    return [i.decode() for i in chosen.tolist()]


def _compare_two(a: _Ranked, b: _Ranked) -> Iterator[Comparison]:
    _, in_a, in_b = np.intersect1d(a.ids, b.ids, assume_unique=True, return_indices=True)
    if not len(in_a):
        raise UserError(f"{a.name} and {b.name} have no sample in common; compare runs of one pool")
    names = sorted({*a.domains} & {*b.domains})
    for domain in [*names, ALL] if len(names) > 1 else names or [ALL]:
        masks = [run.of(domain) for run in (a, b)]
        shared = masks[0][in_a] & masks[1][in_b]
        sizes = [int((run.selected & mask).sum()) for run, mask in zip((a, b), masks, strict=True)]
        common = int((a.selected[in_a] & b.selected[in_b] & shared).sum())
        union = sum(sizes) - common
        yield Comparison(
            a.name,
            b.name,
            domain,
            sizes[0],
            sizes[1],
            common,
            common / sizes[0] if sizes[0] else math.nan,
            common / sizes[1] if sizes[1] else math.nan,
            common / union if union else math.nan,
            spearman(a.delta_entropy[in_a][shared], b.delta_entropy[in_b][shared]),
        )


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """Correlation of the ranks of two columns, equal values sharing theirs; NaN where undefined."""
    both = np.isfinite(first) & np.isfinite(second)
    ranks = [pc.rank_quantile(pa.array(values[both])).to_numpy() for values in (first, second)]
    if both.sum() < 2 or any(np.ptp(rank) == 0 for rank in ranks):
        return math.nan
    return float(np.corrcoef(*ranks)[0, 1])


def as_rows(comparisons: Sequence[Comparison]) -> list[list[str]]:
    """A table, with its head."""
    rows = [[field.name.replace("_", " ") for field in fields(Comparison)]]
    for comparison in comparisons:
        rows.append([_cell(value) for value in astuple(comparison)])
    return rows


def _cell(value: str | int | float) -> str:
    if isinstance(value, float):
        return "–" if math.isnan(value) else f"{value:.3f}"
    return value if isinstance(value, str) else f"{value:,}"


def heat_map(comparisons: Sequence[Comparison]) -> bytes:
    """A PNG: the Jaccard index of every two runs, a field for each domain."""
    runs = list(dict.fromkeys(name for c in comparisons for name in (c.run_a, c.run_b)))
    domains = list(dict.fromkeys(c.domain for c in comparisons))
    side = 1.2 + 0.55 * len(runs)
    figure = Figure(figsize=(side * len(domains) + 1, side + 0.6), layout="constrained")
    for axes, domain in zip(
        figure.subplots(1, len(domains), squeeze=False)[0], domains, strict=True
    ):
        values = np.eye(len(runs))
        for comparison in (c for c in comparisons if c.domain == domain):
            cell = runs.index(comparison.run_a), runs.index(comparison.run_b)
            values[cell] = values[cell[::-1]] = comparison.jaccard
        axes.imshow(values, vmin=0, vmax=1, cmap="Blues")
        for (row, column), value in np.ndenumerate(values):
            text = "–" if math.isnan(value) else f"{value:.2f}"
            colour = "white" if value > 0.6 else "black"
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
        axes.set_title(domain, fontsize=10)
        axes.set_xticks(range(len(runs)), runs, rotation=90, fontsize=8)
        axes.set_yticks(
            range(len(runs)), runs if axes.get_subplotspec().is_first_col() else [], fontsize=8
        )
    figure.suptitle("Jaccard index of selections", fontsize=11)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()
