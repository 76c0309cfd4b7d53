"""A run's result as text for a terminal or a log."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from instructdiff_ray.context import RunContext
from instructdiff_ray.progress import duration
from instructdiff_ray.results.labels import LABELS, written
from instructdiff_ray.results.status import REPORT
from instructdiff_ray.selection.stability import (
    CORE_PROBABILITY,
    MOST_REPEATS,
    WANTED_OVERLAP,
)
from instructdiff_ray.selection.strategies import STRATEGIES
from instructdiff_ray.storage.filesystem import Folder, join

POINTS = ("p05", "p25", "p50", "p75", "p95")


def show_result(context: RunContext, summary: Mapping[str, Any]) -> None:
    """Print what the last round selected, and where everything is."""
    context.progress.say(result_table(summary, context.folder))


def result_table(summary: Mapping[str, Any], folder: Folder) -> str:
    """Counts, quantiles by domain, time and speed, and where the outputs are."""
    blocks = [_counts(summary), _domains(summary["domains"])]
    if mixture := summary.get("mixture"):
        blocks.append(_mixture(mixture))
    blocks.append(_cost(summary))
    if stability := summary.get("stability"):
        blocks.append(_stability(stability))
    if warnings := summary["warnings"]:
        blocks.append("\n".join(f"warning     {warning['message']}" for warning in warnings))
    names = ("selected.jsonl", "ranking.parquet", "rejects.jsonl", REPORT)
    paths = "\n".join(f"  {join(folder.path, name)}" for name in (*names, "summary.json"))
    models = summary.get("calibrated_models") or [summary["calibrated_model"]]
    listed = [p for m in models for p in (m.values() if isinstance(m, dict) else [m])]
    if paths_here := [path for path in listed if path]:
        blocks.append("\n  ".join(["calibrated model", *paths_here]))
    return "\n" + "\n\n".join([*blocks, paths])


def sweep_table(runs: Sequence[tuple[Mapping[str, str], Mapping[str, Any] | None]]) -> str:
    """One line a run of a sweep: its own of the settings, and its summary (None: failed)."""
    names = list(dict.fromkeys(name for settings, _ in runs for name in settings))
    varied = [n for n in names if len({settings.get(n) for settings, _ in runs}) > 1]
    head = ["run", *varied, "pool", "selected", "of tokens", "forward passes", "seconds"]
    rows = [head]
    for number, (settings, summary) in enumerate(runs):
        row = [str(number), *(settings.get(name, "") for name in varied)]
        if not summary:
            rows.append([*row, "failed", "", "", "", ""])
            continue
        counts = summary["counts"]
        share = counts["selected_response_tokens"] / max(1, counts["response_tokens"])
        passes = sum(summary["scoring"]["samples_scored"].values())
        seconds = sum(summary["seconds"].values())
        figures = [f"{counts['pool']:,}", f"{counts['selected']:,}", f"{share:.1%}"]
        rows.append([*row, *figures, f"{passes:,}", f"{seconds:.1f}"])
    return aligned_table(rows, text_columns=1 + len(varied))


def aligned_table(rows: Sequence[Sequence[str]], text_columns: int) -> str:
    """Columns of the same width: the first ones to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if place < text_columns else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _counts(summary: Mapping[str, Any]) -> str:
    counts, strategy = summary["counts"], summary["strategy"]
    calibrated = STRATEGIES[strategy].calibrates
    rejected = counts["rejected"]
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in rejected.items())
    rows = [
        ("read", counts["read"], ""),
        ("rejected", sum(rejected.values()), reasons),
        ("pool", counts["pool"], f"warm-up {counts['warmup']:,}" if calibrated else ""),
    ]
    if calibrated:
        rows += [
            ("below band", counts["below_band"], "NLL fell most"),
            ("above band", counts["above_band"], "NLL rose most or fell least"),
            ("in band", counts["in_band"], "learnable"),
        ]
    if "excluded" in counts:
        excluded = (f"{name} {count:,}" for name, count in counts["excluded_by"].items())
        rows.append(("excluded", counts["excluded"], f"by {', '.join(excluded)}"))
    rows.append(("selected", counts["selected"], f"by strategy {strategy}"))
    return "\n".join(f"{name:<12}{count:>12,}  {note}".rstrip() for name, count, note in rows)


def _domains(domains: Mapping[str, Mapping[str, Any]]) -> str:
    width = max(8, *(len(name) for name in domains)) + 2
    head = "".join(f"{int(point[1:]):>7} %" for point in POINTS)
    lines = [f"{'domain':<{width}}{'pool':>10}{'selected':>10}    quantiles{head}"]
    for name, domain in domains.items():
        measures = [(label, column) for column, label in LABELS.items() if column in domain]
        for label, column in measures:
            values = "".join(f"{written(domain[column][point]):>9}" for point in POINTS)
            first = (label, column) == measures[0]
            counts = f"{domain['pool']:>10,}{domain['selected']:>10,}" if first else " " * 20
            lines.append(f"{name if first else '':<{width}}{counts}    {label:<9}{values}")
    return "\n".join(lines)


def _mixture(mixture: Mapping[str, Any]) -> str:
    """What was wanted of each domain, and what came."""
    rows = [[f"mixture in {mixture['budget']}", "wanted", "share", "came", "share"]]
    for name, domain in mixture["domains"].items():
        wanted = [f"{domain['wanted']:,}", f"{domain['wanted_share']:.1%}"]
        rows.append([name, *wanted, f"{domain['came']:,}", f"{domain['came_share']:.1%}"])
    return aligned_table(rows, text_columns=1)


def _stability(stability: Mapping[str, Any]) -> str:
    """In two lines, what other runs would select."""
    repeats, needed = stability["repeats"], stability["repeats_needed"]
    return (
        f"stability   two single runs share {stability['overlap']:.0%} of their selections, two of"
        f" {repeats} calibrations about {stability['mean_overlap']:.0%}\n"
        f"            {stability['stable_core']:,} samples are selected by at least"
        f" {CORE_PROBABILITY:.0%} of single runs; calibrate.repeats="
        f"{needed or f'{MOST_REPEATS} or more'} would reach {WANTED_OVERLAP:.0%}"
    )


def _forward_passes(descriptions: Mapping[str, Sequence[str]]) -> str:
    """A line for each way in which samples were scored, with the models that were."""
    names: dict[str, list[str]] = defaultdict(list)
    for name, ways in descriptions.items():
        for way in ways:
            names[way].append(name)
    return "".join(f"\n            {', '.join(models)}: {way}" for way, models in names.items())


def _cost(summary: Mapping[str, Any]) -> str:
    stages = ", ".join(f"{name} {duration(s)}" for name, s in summary["seconds"].items())
    scoring = summary["scoring"]
    scored = scoring["samples_scored"]
    if not scoring["tokens"]:
        speed = "no forward pass: finished scores were reused"
    else:
        passes = ", ".join(f"{name} {count:,}" for name, count in scored.items())
        shares = scoring["shares"]
        speed = (
            f"{scoring['tokens_per_second']:,.0f} tokens/s (samples scored: {passes})\n"
            f"            {shares['matrix_product_rate']:.0%} of the matrix-product rate,"
            f" {shares['padding']:.0%} padding, scorers waited {shares['waited']:.0%} of their time"
            f"{_forward_passes(scoring['forward_passes'])}"
        )
    cost = summary["cost"]
    price = (
        ""
        if cost["price"] is None
        else f"\nprice       {cost['price']:,.2f} for {cost['machine_hours']:,.2f} machine hours"
    )
    return f"time        {stages or 'nothing was computed'}\nscoring     {speed}{price}"
