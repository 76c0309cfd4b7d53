"""`evaluation.png`: what each arm has learned, and how it differs from the baseline."""

from __future__ import annotations

import io
from collections.abc import Sequence
from textwrap import wrap

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from instructdiff_ray.config.training import FULL
from instructdiff_ray.evaluation.comparison import UNTRAINED, Comparison, Evaluation
from instructdiff_ray.evaluation.intervals import LEVEL
from instructdiff_ray.selection.budgets import SAMPLES, TOKENS

MOST_MEASURES = 12
# Of a comparison: its colour, and how far its marks stand from the middle of the arm's line.
STYLES = {
    SAMPLES: ("#2f6fab", -0.16, "as many samples"),
    TOKENS: ("#d9730d", 0.16, "as many response tokens"),
}


def plot(evaluation: Evaluation, comparisons: Sequence[Comparison]) -> bytes:
    """A PNG with a row for each measure, of which the first are drawn. Left, the figures of all
    arms, a dot each seed; right, the differences of those that are comparable, with intervals."""
    measures = list(dict.fromkeys((c.measure, c.is_nll) for c in comparisons))[:MOST_MEASURES]
    arms = [UNTRAINED, *evaluation.arms]
    # What is trained on nothing or on all is far away: on one scale it would hide the rest.
    near = [arm for arm in arms if arm not in (UNTRAINED, FULL, evaluation.baseline)]
    shown = near or [arm for arm in arms if arm != evaluation.baseline]
    height = 0.9 + 0.34 * len(arms)
    figure = Figure(figsize=(11, 0.5 + height * len(measures)), layout="constrained")
    grid = figure.subplots(len(measures), 2, squeeze=False, width_ratios=(1, 1.3))
    for (left, right), (measure, is_nll) in zip(grid, measures, strict=True):
        of_measure = [c for c in comparisons if c.measure == measure and c.is_nll == is_nll]
        name = f"NLL {measure}, nats a token" if is_nll else measure
        _figures(left, [c for c in of_measure if c.arm in arms], arms)
        left.set_title("\n".join(wrap(name, 44)), fontsize=10)
        _differences(right, [c for c in of_measure if c.arm in shown], shown)
        title = f"difference from {evaluation.baseline}, {LEVEL:.0%} interval"
        right.set_title(title, fontsize=10)
    handles = [grid[0][1].plot([], [], "o", color=colour)[0] for colour, _, _ in STYLES.values()]
    names = [name for _, _, name in STYLES.values()]
    figure.legend(handles, names, loc="outside lower right", ncols=2, fontsize=8, frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def _figures(axes: Axes, comparisons: Sequence[Comparison], arms: Sequence[str]) -> None:
    for comparison in comparisons:
        colour, shift, _ = STYLES[comparison.matching]
        place = arms.index(comparison.arm) + shift
        axes.plot(comparison.by_seed, [place] * len(comparison.by_seed), ".", color=colour, ms=4)
        axes.plot(comparison.mean, place, "|", color=colour, ms=10)
    _name_lines(axes, arms)


def _differences(axes: Axes, comparisons: Sequence[Comparison], arms: Sequence[str]) -> None:
    axes.axvline(0, color="#7b8794", linewidth=1)
    for comparison in comparisons:
        colour, shift, _ = STYLES[comparison.matching]
        place, difference = arms.index(comparison.arm) + shift, comparison.difference
        assert difference is not None
        by_seed = difference.by_seed
        axes.plot(by_seed, [place] * len(by_seed), ".", color=colour, ms=4, alpha=0.5)
        axes.errorbar(
            difference.mean, place, xerr=difference.half_width, fmt="o", color=colour, ms=5
        )
    _name_lines(axes, arms)


def _name_lines(axes: Axes, arms: Sequence[str]) -> None:
    axes.set_yticks(range(len(arms)), arms, fontsize=8)
    axes.set_ylim(len(arms) - 0.5, -0.5)  # the first on top
    axes.tick_params(axis="x", labelsize=8)
    axes.grid(axis="x", color="#e4e7eb", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
