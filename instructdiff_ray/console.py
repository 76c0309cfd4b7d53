"""A run's result as text for a terminal or a log."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from instructdiff_ray.progress import duration
from instructdiff_ray.storage import Folder, join

POINTS = ("p05", "p25", "p50", "p75", "p95")


def result_table(summary: Mapping[str, Any], folder: Folder) -> str:
    """Counts, quantiles by domain, time and speed, and where the outputs are."""
    blocks = [_counts(summary["counts"]), _domains(summary["domains"]), _cost(summary)]
    names = ("selected.jsonl", "ranking.parquet", "rejects.jsonl", "report/index.html")
    paths = "\n".join(f"  {join(folder.path, name)}" for name in (*names, "summary.json"))
    return "\n" + "\n\n".join(
        [*blocks, f"calibrated model\n  {summary['calibrated_model']}", paths]
    )


def _counts(counts: Mapping[str, Any]) -> str:
    rejected = counts["rejected"]
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in rejected.items())
    rows = [
        ("read", counts["read"], ""),
        ("rejected", sum(rejected.values()), reasons),
        ("pool", counts["pool"], f"warm-up {counts['warmup']:,}"),
        ("below band", counts["below_band"], "NLL fell most"),
        ("above band", counts["above_band"], "NLL rose most or fell least"),
        ("in band", counts["in_band"], "learnable"),
        ("selected", counts["selected"], "lowest ΔH in the band"),
    ]
    return "\n".join(f"{name:<12}{count:>12,}  {note}".rstrip() for name, count, note in rows)


def _domains(domains: Mapping[str, Mapping[str, Any]]) -> str:
    width = max(8, *(len(name) for name in domains)) + 2
    head = "".join(f"{int(point[1:]):>7} %" for point in POINTS)
    lines = [f"{'domain':<{width}}{'pool':>10}{'selected':>10}    quantiles{head}"]
    for name, domain in domains.items():
        for label, column in (("ΔNLL", "delta_nll"), ("ΔH", "delta_entropy")):
            values = "".join(f"{domain[column][point]:>9.3f}" for point in POINTS)
            first = label == "ΔNLL"
            counts = f"{domain['pool']:>10,}{domain['selected']:>10,}" if first else " " * 20
            lines.append(f"{name if first else '':<{width}}{counts}    {label:<9}{values}")
    return "\n".join(lines)


def _cost(summary: Mapping[str, Any]) -> str:
    stages = ", ".join(f"{name} {duration(s)}" for name, s in summary["seconds"].items())
    scoring = summary["scoring"]
    scored = scoring["samples_scored"]
    if not scoring["tokens"]:
        speed = "no forward pass: finished scores were reused"
    else:
        passes = ", ".join(f"{role} {count:,}" for role, count in scored.items())
        shares = scoring["shares"]
        speed = (
            f"{scoring['tokens_per_second']:,.0f} tokens/s (samples scored: {passes})\n"
            f"            {shares['matrix_product_rate']:.0%} of the matrix-product rate,"
            f" {shares['padding']:.0%} padding, scorers waited {shares['waited']:.0%} of their time"
        )
    return f"time        {stages or 'nothing was computed'}\nscoring     {speed}"
