"""The plots of the report, each an inline SVG. Nothing that came from the data enters one but
numbers."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from markupsafe import Markup
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator
from numpy.typing import NDArray

from instructdiff_ray.results.labels import LABELS, UNITS
from instructdiff_ray.selection.select import ABOVE, BELOW, EXCLUDED, NOT_TOP, SELECTED

MAX_PLOTTED_DOMAINS = 20

_FATES = (SELECTED, BELOW, ABOVE, NOT_TOP, EXCLUDED)
_SELECTED, _BELOW, _ABOVE = 0, 1, 2

# Ink becomes a CSS variable, light or dark with the page; the other two must be readable on both,
# because the raster of the map cannot follow.
_INK, POOL_COLOUR, CHOSEN_COLOUR = "#40474f", "#7b8794", "#d9730d"
_INKED = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
_STYLE = {
    **dict.fromkeys(_INKED, _INK),
    "svg.fonttype": "none",  # text stays text: small, selectable, in the reader's own font
    "font.size": 10,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


@dataclass(frozen=True)
class Rows:
    """Some samples of the pool, as columns of one length; `fate` indexes `_FATES`."""

    measures: dict[str, NDArray[np.float64]]
    tokens: NDArray[np.int64]
    fate: NDArray[np.int8]

    @staticmethod
    def of(ranking: pa.Table) -> Rows:
        """All rows of a ranking whose domain and fate are dictionary-encoded."""
        fate = ranking["fate"].combine_chunks()
        fates = pc.index_in(fate.dictionary, value_set=pa.array(_FATES)).to_numpy().astype(np.int8)
        measures = {
            name: ranking[name].to_numpy() for name in LABELS if name in ranking.column_names
        }
        tokens = ranking["response_tokens"].to_numpy()
        return Rows(measures, tokens, fates[fate.indices.to_numpy()])

    @property
    def selected(self) -> NDArray[np.bool_]:
        return np.asarray(self.fate == _SELECTED)

    def take(self, index: NDArray[np.intp]) -> Rows:
        measures = {name: values[index] for name, values in self.measures.items()}
        return Rows(measures, self.tokens[index], self.fate[index])


def split_by_domain(domain: pa.ChunkedArray, rows: Rows) -> dict[str, Rows]:
    """The rows of each domain; one sort, however many domains."""
    column = domain.combine_chunks()
    codes = column.indices.to_numpy()
    order = np.argsort(codes, kind="stable")
    ends = np.cumsum(np.bincount(codes, minlength=len(column.dictionary)))
    parts = [rows.take(index) for index in np.split(order, ends[:-1])]
    named = zip(column.dictionary.to_pylist(), parts, strict=True)
    return {name: part for name, part in named if len(part.fate)}


def domain_plots(domains: Mapping[str, Rows]) -> list[tuple[str, dict[str, Markup]]]:
    """Name of the largest domains, and a plot of each measure."""
    return [
        (
            name,
            {
                LABELS[measure]: _plot(
                    f"{measure}-{number}", (4.4, 2.2), partial(_draw_measure, measure), rows
                )
                for measure in rows.measures
            },
        )
        for number, (name, rows) in enumerate(islice(domains.items(), MAX_PLOTTED_DOMAINS))
    ]


def map_plot(rows: Rows) -> Markup:
    """ΔNLL and ΔH of all rows together."""
    return _plot("map", (5.6, 3.6), _draw_map, rows)


def lengths_plot(rows: Rows) -> Markup:
    """How long the responses are, of all rows and of those selected."""
    return _plot("lengths", (5.6, 2.3), _draw_lengths, rows)


def _plot(
    salt: str, inches: tuple[float, float], draw: Callable[[Axes, Rows], None], rows: Rows
) -> Markup:
    """An inline SVG of what `draw` draws; `salt` keeps its ids apart from the other plots'."""
    buffer = io.StringIO()
    # From the defaults, so that a matplotlibrc on this machine does not change the page.
    with style.context(["default", {**_STYLE, "svg.hashsalt": salt}]):
        figure = Figure(figsize=inches)
        width, height = inches  # fixed margins: half the time of a layout engine, and axes align
        box = (0.62 / width, 0.5 / height, 1 - 0.75 / width, 1 - 0.6 / height)
        draw(figure.add_axes(box), rows)
        no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=no_metadata)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(_INK, "var(--ink)")
    # A <style> would reach the whole page, and the names of groups are alike in every plot.
    return Markup(re.sub(r'<style.*?</style>| id="[\w.]+_\d+"', "", svg, flags=re.DOTALL))


def _draw_measure(measure: str, axes: Axes, rows: Rows) -> None:
    # A baseline may give no number: what ZIP did not pick has no place in its order.
    known = np.isfinite(rows.measures[measure])
    values, fate = rows.measures[measure][known], rows.fate[known]
    if len(values):
        cuts = _cuts(values, fate) if measure == "delta_nll" else []
        _draw_histogram(axes, values, fate == _SELECTED, cuts)
    axes.set_xlabel(LABELS[measure] + UNITS[measure])


def _cuts(values: NDArray[np.float64], fate: NDArray[np.int8]) -> list[float]:
    """The edges of the band; none where it was cut by something else than these values."""
    below, above = values[fate == _BELOW], values[fate == _ABOVE]
    band = values[(fate != _BELOW) & (fate != _ABOVE)]
    cuts = [float(below.max())] if below.size and below.max() <= band.min() else []
    return cuts + ([float(above.min())] if above.size and above.min() >= band.max() else [])


def _draw_histogram(
    axes: Axes, values: NDArray[np.float64], selected: NDArray[np.bool_], cuts: Sequence[float]
) -> None:
    bins = int(np.clip(2 * np.sqrt(len(values)), 10, 60))  # few samples want wide bars
    low, high = _span(values, cuts)
    edges = np.linspace(low, high, bins + 1)
    place = _bin(values, low, high, bins)
    axes.stairs(np.bincount(place, minlength=bins), edges, fill=True, color=POOL_COLOUR)
    axes.stairs(np.bincount(place[selected], minlength=bins), edges, fill=True, color=CHOSEN_COLOUR)
    for cut in cuts:
        axes.axvline(cut, color=_INK, linewidth=1, linestyle=(0, (4, 3)))
    axes.set(xlim=(low, high), ylabel="samples")
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.yaxis.set_major_formatter(EngFormatter(sep=""))


def _draw_map(axes: Axes, rows: Rows) -> None:
    """A 2-D histogram as one small image: the denser the more opaque, coloured by what was kept."""
    columns, lines = 120, 80
    delta_nll, delta_entropy = rows.measures["delta_nll"], rows.measures["delta_entropy"]
    left, right = _span(delta_nll)
    bottom, top = _span(delta_entropy)
    cell = _bin(delta_entropy, bottom, top, lines) * columns
    cell += _bin(delta_nll, left, right, columns)
    total = np.bincount(cell, minlength=lines * columns).reshape(lines, columns)
    chosen = np.bincount(cell[rows.selected], minlength=lines * columns).reshape(lines, columns)
    share = chosen / np.maximum(total, 1)
    image = np.empty((lines, columns, 4))
    pool, selected = np.array(to_rgb(POOL_COLOUR)), np.array(to_rgb(CHOSEN_COLOUR))
    image[..., :3] = pool + share[..., None] * (selected - pool)
    # Counts span decades; a cell with one sample must still be seen.
    image[..., 3] = np.where(total, 0.3 + 0.7 * np.log1p(total) / np.log1p(total.max()), 0)
    extent = (left, right, bottom, top)
    axes.imshow(image, extent=extent, origin="lower", aspect="auto", interpolation="none")
    axes.axhline(0, color=_INK, linewidth=0.5)
    axes.axvline(0, color=_INK, linewidth=0.5)
    axes.set(xlim=(left, right), ylim=(bottom, top))
    axes.set(xlabel="ΔNLL (nats per token)", ylabel="ΔH (nats per token)")


def _draw_lengths(axes: Axes, rows: Rows) -> None:
    """Each group's own distribution over log length, so that a small selection compares."""
    tokens = np.maximum(rows.tokens, 1)
    edges = np.unique(np.geomspace(tokens.min(), tokens.max() + 1, 50).round())
    widths = np.diff(np.log(edges))
    pool = np.histogram(tokens, edges)[0] / len(tokens)
    axes.stairs(pool / widths, edges, fill=True, color=POOL_COLOUR)
    if rows.selected.any():
        chosen = np.histogram(tokens[rows.selected], edges)[0] / rows.selected.sum()
        axes.stairs(chosen / widths, edges, color=CHOSEN_COLOUR, linewidth=1.8)
    axes.set(xscale="log", xlim=(edges[0], edges[-1]))
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.minorticks_off()
    axes.set(xlabel="response tokens (logarithmic)", ylabel="share", yticks=[])


def _span(values: NDArray[np.float64], shown: Sequence[float] = ()) -> tuple[float, float]:
    """Where to draw `values`: all of them, unless a few lie so far out that the rest would vanish.

    `shown` lies within it in any case; what lies outside is drawn in the outermost bins.
    """
    low, high = np.quantile(values, (0.01, 0.99))
    margin = (high - low) / 2
    left = float(min([max(values.min(), low - margin), *shown]))
    right = float(max([min(values.max(), high + margin), *shown]))
    if right - left < 1e-6:  # all alike: still a place to draw them
        return left - 0.5, right + 0.5
    return left, right


def _bin(values: NDArray[np.float64], low: float, high: float, bins: int) -> NDArray[np.intp]:
    """The number of each value's bin; far faster than a search over the edges."""
    place = np.clip((values - low) * (bins / (high - low)), 0, bins - 1)
    return place.astype(np.intp)
