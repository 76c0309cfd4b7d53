"""What a practitioner would warn of: a run may end well, and its selection be poor all the same.

The thresholds stand above what four clean pools show; all are in one table in docs/user-guide.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from instructdiff_ray.pool.sampling import floor_share
from instructdiff_ray.results.composition import (
    NEAR_IDENTICAL,
    OPENING,
    SOURCE,
    TEMPLATE,
    Concentration,
)
from instructdiff_ray.selection.budgets import SAMPLES, greatest_ratio
from instructdiff_ray.selection.guards import GUARDS
from instructdiff_ray.selection.ranking import Ranking
from instructdiff_ray.selection.select import SELECTED
from instructdiff_ray.selection.stability import MOST_REPEATS, WANTED_OVERLAP

# Of the selection, of a domain, and of the pool.
ATYPICAL_SHARE, EXCLUDED_SHARE, TRUNCATED_SHARE = 0.05, 0.1, 0.03
# Nats; less is what another seed of the same calibration changes.
LEAST_CHANGE = 0.02
CORRELATION = 0.8
# By how much the selection's share of one source or text may exceed the pool's; and of how many
# samples shares mean something.
EXCESS_SHARE, LEAST_SELECTED = 0.25, 100
# Of two such runs, expected; two single ones in docs/strategies.md share 0.58 to 0.93.
LEAST_OVERLAP = 0.5
# Domains that are named in a line.
LISTED = 5
# Rows of which correlations are taken, the first of each partition: ids are hashes, so it is a
# random draw.
CORRELATION_ROWS = 20_000
DEDUPLICATE = "look at the random draw in the report, and leave copies of one text out of the pool"
# What the samples of a concentration have in common, and what to do.
CONCENTRATED = {
    SOURCE: ("comes from {}", "make it a domain of its own, with `data.path={name: file, …}`"),
    TEMPLATE: ('has a prompt that begins with "{}"', DEDUPLICATE),
    OPENING: ('has a response that begins with "{}"', DEDUPLICATE),
    NEAR_IDENTICAL: ("has a response that is nearly the same as another's", DEDUPLICATE),
}


@dataclass(frozen=True)
class RunWarning:
    """name: what is wrong, in a word or two; value, threshold: the figure, and from where on it is
    a warning; message: what it means and what to do."""

    name: str
    value: float
    threshold: float
    message: str


def find_warnings(
    ranking: Ranking,
    counts: Mapping[str, Any],
    guards: Mapping[str, Any],
    mixture: Mapping[str, Any],
    concentrations: Sequence[Concentration],
) -> list[RunWarning]:
    """All that hold of a ranking. counts, guards, mixture: of `summary.json`."""
    found = [*_of_pool(counts), *_of_domains(ranking)]
    if mixture:
        found += _of_mixture(ranking, counts, mixture)
    if counts["selected"] >= LEAST_SELECTED:
        found += _of_composition(concentrations)
    if "typical" in guards:
        found += _of_selection(guards["typical"]["selected_above_limit"], counts["selected"])
    if ranking.inputs.strategy.calibrates:
        found += [*_of_calibration(ranking), *_of_ranks(ranking), *_of_repeats(ranking)]
    return found


def _of_pool(counts: Mapping[str, Any]) -> Iterator[RunWarning]:
    truncated = counts["truncated"] / max(1, counts["pool"])
    if truncated > TRUNCATED_SHARE:
        yield RunWarning(
            "truncated",
            truncated,
            TRUNCATED_SHARE,
            f"{truncated:.1%} of the pool was cut off at calibrate.max_length, and is scored"
            " without its end; raise it, or use data.over_long=reject",
        )


def _of_domains(ranking: Ranking) -> Iterator[RunWarning]:
    selected, guarded = ranking.has_fate(SELECTED), ranking.excluded_by(GUARDS)
    for name, rows in ranking.by_domain():
        size, count = int(rows.sum()), int((rows & selected).sum())
        config, budget = ranking.inputs.select(name), ranking.budgets[name]
        if budget.share is None and floor_share(config.ratio, size) < 1:
            yield RunWarning(
                "small domain",
                size,
                1 / config.ratio,
                f"domain {name} has {size} samples, less than one for select.ratio={config.ratio}:"
                " name fewer domains, or raise its ratio",
            )
        cuts = ranking.inputs.strategy.calibrates and config.reject_ratio > 0
        if cuts and floor_share(config.reject_ratio, size) < 1:
            yield RunWarning(
                "filter cuts nothing",
                size,
                1 / config.reject_ratio,
                f"domain {name} has {size} samples, too few for select.reject_ratio="
                f"{config.reject_ratio} to cut any; name fewer domains",
            )
        excluded = int((rows & guarded).sum()) / size
        if excluded > EXCLUDED_SHARE:
            yield RunWarning(
                "much excluded",
                excluded,
                EXCLUDED_SHARE,
                f"select.guard excludes {excluded:.0%} of domain {name}; look at it in the report:"
                " if it is good, make it a domain of its own, or name fewer guards",
            )
        wanted = min(budget.size, budget.most)
        if budget.share is None and budget.unit == SAMPLES and count < wanted:
            yield RunWarning(
                "short selection",
                count,
                wanted,
                f"of domain {name} {count} samples are selected and not {wanted}: what may not be"
                " selected leaves no more; exclude less (select.guard, select.exclude_warmup), or"
                " lower select.ratio",
            )


def _of_mixture(
    ranking: Ranking, counts: Mapping[str, Any], mixture: Mapping[str, Any]
) -> Iterator[RunWarning]:
    unit, domains = mixture["budget"], mixture["domains"]
    missed = {
        name: d["came"] / d["wanted"] for name, d in domains.items() if d["came"] < d["wanted"]
    }
    if not missed:
        return
    worst = sorted(missed, key=lambda name: (missed[name], name))
    came = [f"{domains[n]['came']:,} of {domains[n]['wanted']:,} of {n}" for n in worst[:LISTED]]
    more = f" and too few of {len(worst) - LISTED} more domains" if len(worst) > LISTED else ""
    shares = {name: budget.share for name, budget in ranking.budgets.items() if budget.share}
    whole = counts["pool" if unit == SAMPLES else "response_tokens"]
    ratio = greatest_ratio(shares, whole, {name: domains[name]["available"] for name in shares})
    advice = f"lower select.ratio to {ratio:g}" if ratio else f"leave {worst[0]} out of the mixture"
    yield RunWarning(
        "mixture not met",
        missed[worst[0]],
        1.0,
        f"of the {unit} that select.mixture wants came {', '.join(came)}{more}: no more may be"
        f" selected there, and other domains do not fill up; {advice}, or exclude less"
        " (select.guard, select.exclude_warmup)",
    )


def _of_selection(atypical: int, selected: int) -> Iterator[RunWarning]:
    above = atypical / max(1, selected)
    if above > ATYPICAL_SHARE:
        yield RunWarning(
            "atypical selection",
            above,
            ATYPICAL_SHARE,
            f"{above:.1%} of the selected responses surprise the models as noise does; look at"
            " them in the report, and use select.guard=typical",
        )


def _of_composition(concentrations: Sequence[Concentration]) -> Iterator[RunWarning]:
    for concentration in concentrations:
        if concentration.excess > EXCESS_SHARE:
            description, advice = CONCENTRATED[concentration.kind]
            yield RunWarning(
                concentration.kind,
                concentration.excess,
                EXCESS_SHARE,
                f"{concentration.selected:.0%} of the selection"
                f" {description.format(concentration.value)}, but {concentration.pool:.0%} of as"
                f" many random samples of its domains; {advice}",
            )


def _of_calibration(ranking: Ranking) -> Iterator[RunWarning]:
    changes = ranking.table["delta_nll"].to_numpy()
    for name, rows in ranking.by_domain():
        change = changes[rows]
        median = float(np.median(change, overwrite_input=True))
        np.abs(change, out=change)
        size = float(np.median(change, overwrite_input=True))
        if size < LEAST_CHANGE:
            yield RunWarning(
                "calibration changed nothing",
                size,
                LEAST_CHANGE,
                f"half of the responses of domain {name} changed by less than {size:.3f} nats per"
                " token: their ranking is noise; raise calibrate.learning_rate, epochs or ratio",
            )
        elif median > 0:
            yield RunWarning(
                "calibration did harm",
                median,
                0.0,
                f"the calibrated model finds half of domain {name} at least {median:.2f} nats per"
                " token less likely than the base model; lower calibrate.learning_rate or epochs",
            )


def _of_ranks(ranking: Ranking) -> Iterator[RunWarning]:
    correlations = rank_correlations(ranking)
    for column, name, advice in (
        ("response_tokens", "length", "compare with strategy=response_length"),
        ("base_nll", "base NLL", "compare with strategy=ppl_min and ppl_max"),
    ):
        correlation = correlations[column]
        if abs(correlation) > CORRELATION:
            yield RunWarning(
                f"ΔH follows {name}",
                correlation,
                CORRELATION,
                f"ΔH has a rank correlation of {correlation:+.2f} with {name}: the method selects"
                f" by little else; {advice} (instructdiff compare)",
            )


def _of_repeats(ranking: Ranking) -> Iterator[RunWarning]:
    for name, stability in ranking.stability.items():
        if name and stability.mean_overlap < LEAST_OVERLAP:
            needed = stability.repeats_needed or f"{MOST_REPEATS} or more"
            yield RunWarning(
                "unstable selection",
                stability.mean_overlap,
                LEAST_OVERLAP,
                f"domain {name}: another such run would select {stability.mean_overlap:.0%} of the"
                f" same samples; raise calibrate.repeats ({needed} would reach"
                f" {WANTED_OVERLAP:.0%}), calibrate.ratio or calibrate.epochs",
            )


def rank_correlations(ranking: Ranking) -> dict[str, float]:
    """Spearman's, of ΔH with the other columns, by ranks within each domain; NaN where a column is
    constant. Of the first rows: as ids are hashes, they are a random sample."""
    columns = ["domain", "response_tokens", "base_nll", "delta_entropy"]
    tables, rows = [], 0
    for table in ranking.rows():
        tables.append(table.select(columns).slice(0, CORRELATION_ROWS))
        rows += table.num_rows
        if rows >= CORRELATION_ROWS:
            break
    ranks = pa.concat_tables(tables).to_pandas().groupby("domain").rank(pct=True)
    return dict(ranks.corr()["delta_entropy"])
