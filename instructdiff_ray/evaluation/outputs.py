"""What an evaluation prints and leaves: tables, `evaluation.json`, `evaluation.parquet`, a plot."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from statistics import fmean
from typing import Any

import numpy as np
import pyarrow as pa

from instructdiff_ray.evaluation.arms import MATCHINGS
from instructdiff_ray.evaluation.comparison import (
    UNTRAINED,
    Comparison,
    Evaluation,
    Trained,
    compare_arms,
)
from instructdiff_ray.evaluation.intervals import LEVEL
from instructdiff_ray.evaluation.plot import plot
from instructdiff_ray.results.console import aligned_table
from instructdiff_ray.selection.budgets import SAMPLES
from instructdiff_ray.storage.filesystem import Folder

# Columns of the first table, over those of a cost.
SELECTING = ("tokens read", "tokens trained", "seconds")
TABLE_NLL = "evaluation.parquet"


def tables(evaluation: Evaluation) -> str:
    """A table for each of the two comparisons, what its columns mean, and where there are several
    domains or tasks a table of these."""
    comparisons = compare_arms(evaluation)
    blocks = [_about(evaluation)]
    for matching in MATCHINGS:
        of_matching = [c for c in comparisons if c.matching == matching]
        blocks.append(f"{heading(evaluation, matching)}\n{_main_table(evaluation, of_matching)}")
        if len(measures := _measures(of_matching)) > 1:
            blocks.append(_measures_table(of_matching, measures))
    return "\n\n".join(blocks)


def heading(evaluation: Evaluation, matching: str) -> str:
    """What the arms of a comparison have in common."""
    what = "samples" if matching == SAMPLES else "response tokens"
    return f"as many {what} of each domain as {evaluation.reference} selects"


def label(comparison: Comparison) -> str:
    """What a comparison measures."""
    return f"NLL {comparison.measure}" if comparison.is_nll else comparison.measure


def write(folder: Folder, evaluation: Evaluation, about: Mapping[str, object]) -> None:
    """Leave `evaluation.png` and `evaluation.parquet`, and last `evaluation.json`."""
    comparisons = compare_arms(evaluation)
    folder.write_bytes("evaluation.png", plot(evaluation, comparisons))
    folder.write_table(TABLE_NLL, _by_sample(evaluation))
    held_out = {
        name: {"samples": int(mask.sum()), "tokens": int(evaluation.held_out.tokens[mask].sum())}
        for name, mask in evaluation.held_out.masks().items()
    }
    found = {
        **about,
        "arms": list(evaluation.arms),
        "reference": evaluation.reference,
        "baseline": evaluation.baseline,
        "held_out": held_out,
        "results": [_as_json(evaluation, result) for result in evaluation.results],
        "level": LEVEL,
        "comparisons": [asdict(comparison) for comparison in comparisons],
    }
    text = json.dumps(found, indent=2, ensure_ascii=False)
    folder.write_bytes("evaluation.json", f"{text}\n".encode())


def column_of(result: Trained) -> str:
    """The column of `evaluation.parquet` that has a model's NLL."""
    if result.arm == UNTRAINED:
        return UNTRAINED
    return f"{result.arm}, {' and '.join(result.matchings)}, seed {result.seed}"


def _about(evaluation: Evaluation) -> str:
    samples, tokens = len(evaluation.held_out.tokens), int(evaluation.held_out.tokens.sum())
    seeds = len(evaluation.of_arm(evaluation.reference, SAMPLES))
    over = f"over held-out samples and {seeds} seeds" if seeds > 1 else "over held-out samples only"
    return (
        f"NLL, nats a token, of {samples:,} held-out responses with {tokens:,} tokens; lower is"
        f" better\ndifference from {evaluation.baseline} with its interval of {LEVEL:.0%},"
        f" {over}\nto select: tokens read and trained on from nothing, seconds of this command"
    )


def _main_table(evaluation: Evaluation, comparisons: Sequence[Comparison]) -> str:
    first = comparisons[0].measure  # of all domains, or of the only one
    head = ["trained on", "samples", "response tokens", "seeds", "NLL", "difference"]
    rows = [[*head, *(f"to select: {SELECTING[0]}", *SELECTING[1:])]]
    for comparison in (c for c in comparisons if c.measure == first):
        models = evaluation.of_arm(comparison.arm, comparison.matching)
        sizes = (fmean(m.samples for m in models), fmean(m.response_tokens for m in models))
        cost = (
            fmean(sum(m.cost.read.values()) for m in models),
            fmean(m.cost.trained for m in models),
        )
        rows.append(
            [
                comparison.arm,
                *(f"{size:,.0f}" for size in sizes),
                str(len(models)),
                f"{comparison.mean:.4f}",
                _difference(comparison),
                *(f"{tokens:,.0f}" for tokens in cost),
                f"{fmean(m.cost.seconds for m in models):,.1f}",
            ]
        )
    return aligned_table(rows, text_columns=1)


def _measures(comparisons: Sequence[Comparison]) -> list[str]:
    return list(dict.fromkeys(label(c) for c in comparisons))


def _measures_table(comparisons: Sequence[Comparison], measures: Sequence[str]) -> str:
    cells: dict[str, list[str]] = {}
    for comparison in comparisons:
        cell = f"{comparison.mean:.4f} ({_difference(comparison)})"
        cells.setdefault(comparison.arm, []).append(cell)
    return aligned_table(
        [["trained on", *measures], *([arm, *row] for arm, row in cells.items())], text_columns=1
    )


def _difference(comparison: Comparison) -> str:
    difference = comparison.difference
    if difference is None:
        return "–"
    if difference.half_width is None:
        return f"{difference.mean:+.4f}"
    return f"{difference.mean:+.4f} ± {difference.half_width:.4f}"


def _as_json(evaluation: Evaluation, result: Trained) -> dict[str, Any]:
    held_out = evaluation.held_out
    nll = {
        name: float(result.nll_sums[mask].sum() / held_out.tokens[mask].sum())
        for name, mask in held_out.masks().items()
    }
    rest = {
        field.name: getattr(result, field.name)
        for field in fields(result)
        if field.name not in ("nll_sums", "cost")
    }
    return {**rest, "cost": asdict(result.cost), "nll": nll, "column": column_of(result)}


def _by_sample(evaluation: Evaluation) -> pa.Table:
    """A row for each held-out sample: under each model the NLL of its response together, nats."""
    held_out = evaluation.held_out
    columns = {
        "sample_id": pa.array(np.char.decode(held_out.sample_ids)),
        "domain": pa.array(held_out.domains),
        "response_tokens": pa.array(held_out.tokens),
    }
    columns.update({column_of(r): pa.array(r.nll_sums) for r in evaluation.results})
    return pa.table(columns)
