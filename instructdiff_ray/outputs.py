"""What a run leaves in its folder: selection, ranking, rejects, summary, configuration, report.

`summary.json` is deleted first and written last: a folder that has one is complete.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs

from instructdiff_ray.pool import REJECTS, Pool, pool_rows
from instructdiff_ray.ranking import selected_ids
from instructdiff_ray.report import Example, render_report
from instructdiff_ray.select import ABOVE, BELOW, NOT_TOP, SELECTED
from instructdiff_ray.storage import Folder, open_filesystem

SUMMARY = "summary.json"
EXAMPLES_EACH = 4
# Heading of the examples in the report → fate, column to sort by, order.
EXAMPLES = {
    "Selected: lowest ΔH in the band": (SELECTED, "delta_entropy", "ascending"),
    "Left in the band: highest ΔH": (NOT_TOP, "delta_entropy", "descending"),
    "Below the band: lowest ΔNLL": (BELOW, "delta_nll", "ascending"),
    "Above the band: highest ΔNLL": (ABOVE, "delta_nll", "descending"),
}


@dataclass(frozen=True)
class Outcome:
    """One round's result. config_yaml: the resolved configuration."""

    pool: Pool
    ranking: pa.Table
    summary: dict[str, Any]
    config_yaml: str


def write_outputs(folder: Folder, outcome: Outcome) -> None:
    """Write all files of one round into `folder` but the summary, which makes them complete."""
    folder.delete(SUMMARY)
    pool, ranking = outcome.pool, outcome.ranking
    picks = _examples(ranking)
    parts = _write_selected(folder, pool, set(selected_ids(ranking)), set().union(*picks.values()))
    examples = {
        heading: [_example(ranking, id, parts[id]) for id in ids] for heading, ids in picks.items()
    }
    folder.write_table("ranking.parquet", ranking)
    _write_rejects(folder, pool)
    folder.write_bytes("config.yaml", outcome.config_yaml.encode())
    page = render_report(outcome.summary, ranking, outcome.config_yaml, examples)
    folder.write_bytes("report/index.html", page.encode())


def start_run_folder(folder: Folder) -> None:
    """Make way in a folder that an earlier run has left: nothing of it passes for the new one's."""
    folder.delete(SUMMARY)
    for name in {name.split("/")[0] for name in folder.sizes() if name.startswith("round-")}:
        folder.delete(name)


def copy_outputs(source: Folder, target: Folder) -> None:
    """Show one round's outputs at the top of the run's folder."""
    target.delete(SUMMARY)
    names = [name for name in source.sizes() if name != SUMMARY] + [SUMMARY]
    for name in names:
        _copy(source, target, name)


def _copy(source: Folder, target: Folder, name: str) -> None:
    fs, path = open_filesystem(source.sub(name).path)
    _, place = open_filesystem(target.sub(name).path)
    fs.create_dir(place.rsplit("/", 1)[0], recursive=True)
    pafs.copy_files(path, place, source_filesystem=fs, destination_filesystem=fs)


def _write_selected(
    folder: Folder, pool: Pool, selected: set[str], examples: set[str]
) -> dict[str, list[dict[str, str]]]:
    """Write `selected.jsonl`, source rows in source order; gives the parts of the examples."""
    written, parts = 0, {}
    with folder.open_output("selected.jsonl") as stream:
        for table in pool_rows(pool, selected | examples, ["sample_id", "source", "parts"]):
            for row in table.to_pylist():
                if row["sample_id"] in selected:
                    stream.write(row["source"].encode() + b"\n")
                    written += 1
                if row["sample_id"] in examples:
                    parts[row["sample_id"]] = row["parts"]
    assert written == len(selected), f"{written} of {len(selected)} selected rows were found"
    return parts


def _write_rejects(folder: Folder, pool: Pool) -> None:
    with folder.open_output("rejects.jsonl") as stream:
        for name in pool.rejects:
            for row in pool.folder.read_table(name).select(REJECTS.names).to_pylist():
                stream.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")


def _examples(ranking: pa.Table) -> dict[str, list[str]]:
    picks = {}
    for heading, (fate, column, order) in EXAMPLES.items():
        rows = ranking.filter(pc.equal(ranking["fate"], fate))
        keys = [(column, order), ("sample_id", "ascending")]
        first = pc.select_k_unstable(rows, EXAMPLES_EACH, sort_keys=keys)
        picks[heading] = rows.take(first)["sample_id"].to_pylist()
    return {heading: ids for heading, ids in picks.items() if ids}


def _example(ranking: pa.Table, sample_id: str, parts: list[dict[str, str]]) -> Example:
    row = ranking.filter(pc.equal(ranking["sample_id"], sample_id)).to_pylist()[0]
    return Example(
        sample_id=sample_id,
        domain=row["domain"],
        fate=row["fate"],
        delta_nll=row["delta_nll"],
        delta_entropy=row["delta_entropy"],
        prompt=_text(part["text"] for part in parts[:-1]),
        response=parts[-1]["text"],
    )


def _text(texts: Iterable[str]) -> str:
    return "\n\n".join(texts)
