"""The page that ends a run: what was read, what was kept, and how both are distributed.

`render_report` is a pure function from a run's results to one self-contained HTML page. Everything
that came from the data is untrusted: the template escapes it, and none of it enters a plot.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

import jinja2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from instructdiff_ray.results.examples import Example
from instructdiff_ray.results.labels import LABELS, written
from instructdiff_ray.results.plots import (
    CHOSEN_COLOUR,
    POOL_COLOUR,
    Rows,
    domain_plots,
    lengths_plot,
    map_plot,
    split_by_domain,
)
from instructdiff_ray.selection.stability import CORE_PROBABILITY, WANTED_OVERLAP

PAPER_MEAN_DELTA_ENTROPY = {"general": 0.41, "medical": 0.66, "math": 0.03, "code": 0.08}
# A larger pool is drawn by its first rows: ids are hashes, so these are a random sample of it.
MAX_PLOTTED_ROWS = 1 << 20


def render_report(
    summary: dict[str, Any],
    ranking: pa.Table,
    config_yaml: str,
    examples: Mapping[str, Sequence[Example]],
) -> str:
    """Renders a run as one HTML page without scripts or outside resources.

    Args:
        summary: the run's `summary.json`, with `round`, `rounds` and `domains`.
        ranking: one row a pool sample, at least one: domain, response_tokens, delta_nll and
            delta_entropy (in nats) or a baseline's value, and fate; domain and fate are
            dictionary-encoded.
        config_yaml: the resolved configuration, shown as it is.
        examples: samples to show under each heading, in this order.

    Returns:
        The page; the same arguments give the same bytes, which always encode as UTF-8.
    """
    plotted = ranking.slice(0, MAX_PLOTTED_ROWS)
    rows, facts = Rows.of(plotted), _facts_by_domain(ranking)
    parts = split_by_domain(plotted["domain"], rows)
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_template),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        count=lambda value: f"{value:,.0f}",
        nats=_format_nats,
        duration=_format_seconds,
        percent=lambda part, whole: f"{100 * part / whole if whole else 0:.1f}",
        change=_format_change,
    )
    page = environment.get_template("report.html.j2").render(
        summary=summary,
        config_yaml=config_yaml,
        examples=examples,
        token_view=any(example.scored for group in examples.values() for example in group),
        pool=facts.pop(""),
        domains=facts,
        plots=domain_plots({name: parts[name] for name in facts if name in parts}),
        plotted_rows=plotted.num_rows if plotted.num_rows < ranking.num_rows else None,
        map=map_plot(rows) if "delta_nll" in rows.measures else None,
        labels={name: LABELS[name] for name in rows.measures},
        lengths=lengths_plot(rows),
        core_probability=CORE_PROBABILITY,
        wanted_overlap=WANTED_OVERLAP,
        paper=PAPER_MEAN_DELTA_ENTROPY,
        colours={"pool": POOL_COLOUR, "chosen": CHOSEN_COLOUR},
    )
    # JSON may hold lone surrogates ("\ud800"), which would break writing the page.
    return page.encode("utf-8", "replace").decode("utf-8")


def _template(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _facts_by_domain(ranking: pa.Table) -> dict[str, dict[str, float | None]]:
    """What the tables say of each domain, the largest first, and of all samples, under ""."""
    rows = Rows.of(ranking)
    domain = ranking["domain"].combine_chunks()
    codes, names = domain.indices.to_numpy(), domain.dictionary.to_pylist()
    sizes = {name: int((codes == code).sum()) for code, name in enumerate(names)}
    facts = {"": _facts(rows, np.ones(len(codes), bool))}
    for name in sorted(names, key=lambda name: (-sizes[name], name)):
        if sizes[name]:
            facts[name] = _facts(rows, codes == names.index(name))
    return facts


def _facts(rows: Rows, wanted: NDArray[np.bool_]) -> dict[str, float | None]:
    """Of the wanted rows; None where nothing was selected."""
    chosen, (*_, ranked_by) = wanted & rows.selected, rows.measures.values()
    any_chosen = bool(chosen.any())
    return {
        "mean": float(ranked_by[wanted].mean()),  # shown of ΔH alone, which is finite
        "mean_selected": float(ranked_by[chosen].mean()) if any_chosen else None,
        "tokens": float(np.median(rows.tokens[wanted], overwrite_input=True)),
        "tokens_selected": float(np.median(rows.tokens[chosen])) if any_chosen else None,
        "all_tokens": int(np.sum(rows.tokens, where=wanted, dtype=np.int64)),
        "all_tokens_selected": int(np.sum(rows.tokens, where=chosen, dtype=np.int64)),
    }


def _format_nats(value: float | None) -> str:
    return written(value).replace("-", "\N{MINUS SIGN}")


def _format_change(value: float) -> str:
    return f"{value:+.2f}".replace("-", "\N{MINUS SIGN}")


def _format_seconds(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    return f"{minutes // 60} h {minutes % 60:02} min"
