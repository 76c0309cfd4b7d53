"""What a run leaves in its folder: selection, ranking, rejects, summary, configuration, report.

`summary.json` is deleted first and written last: a folder that has one is complete.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import chain, islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import yaml

from instructdiff_ray.config.run import Config
from instructdiff_ray.context import RunContext
from instructdiff_ray.pipeline import Round
from instructdiff_ray.pool.dataset import pool_rows
from instructdiff_ray.pool.pool import REJECTS, Pool, reject_row
from instructdiff_ray.results.composition import SAMPLES, compare_with_pool
from instructdiff_ray.results.labels import GUARD_LABELS, LABELS
from instructdiff_ray.results.report import Example, render_report
from instructdiff_ray.results.summary import SUMMARY, summarize
from instructdiff_ray.sample import Reject
from instructdiff_ray.selection.guards import GUARDS
from instructdiff_ray.selection.ranking import Ranking, selected_ids
from instructdiff_ray.selection.select import ABOVE, BELOW, EXCLUDED, NOT_TOP, SELECTED
from instructdiff_ray.storage.filesystem import Folder, open_filesystem

EXAMPLES_EACH = 4


def write_round(context: RunContext, result: Round) -> dict[str, Any]:
    """Write the outputs of one round, and give its summary; the last round's outputs also show at
    the top of the folder."""
    rounds = context.config.rounds
    folder = context.folder.sub(f"round-{result.number}") if rounds > 1 else context.folder
    with context.progress.stage("write", "rows") as stage:
        if result.number == 1:
            start_run_folder(context.folder)
        summary = write_outputs(folder, context, result)
        stage.add(summary["counts"]["selected"])
        earlier = context.progress.seconds.get("write", 0.0)
        summary["seconds"]["write"] = earlier + stage.elapsed()
        folder.write_json(SUMMARY, summary)
        if result.number == rounds > 1:
            copy_outputs(folder, context.folder)
    return summary


def config_yaml(config: Config) -> str:
    """The resolved configuration, as `config.yaml` has it."""
    return yaml.safe_dump(asdict(config), allow_unicode=True, sort_keys=False)


def write_outputs(folder: Folder, context: RunContext, result: Round) -> dict[str, Any]:
    """Write all files of one round into `folder` but the summary, which makes them complete and is
    given."""
    folder.delete(SUMMARY)
    ranking, config_text = result.ranking, config_yaml(context.config)
    places = _examples(ranking)
    rows = write_ranking(folder, ranking, {row for shown in places.values() for row in shown})
    selected = selected_ids(ranking)
    # Of the selection and of the pool a random sample each: ids are hashes.
    drawn = selected[:SAMPLES], [*islice(ranking.pool.ids(), min(SAMPLES, len(selected)))]
    wanted = {*(row["sample_id"] for row in rows.values()), *chain(*drawn)}
    texts = _write_selected(folder, ranking.pool, {*selected}, wanted)
    compared = [[texts[sample_id] for sample_id in ids] for ids in drawn]
    summary = summarize(context, result, compare_with_pool(*compared))
    examples = {
        heading: [
            _example(rows[place], ranking.inputs.measures, texts[rows[place]["sample_id"]]["parts"])
            for place in shown
        ]
        for heading, shown in places.items()
    }
    _write_rejects(folder, ranking)
    folder.write_bytes("config.yaml", config_text.encode())
    page = render_report(summary, ranking.table, config_text, examples)
    folder.write_bytes("report/index.html", page.encode())
    return summary


def start_run_folder(folder: Folder) -> None:
    """Make way in a folder that an earlier run has left: nothing of it passes for the new one's."""
    folder.delete(SUMMARY)
    for name in {name.split("/")[0] for name in folder.sizes() if name.startswith("round-")}:
        folder.delete(name)


def copy_outputs(source: Folder, target: Folder) -> None:
    """Show one round's outputs at the top of the run's folder."""
    target.delete(SUMMARY)
    for name in source.sizes():
        if name != SUMMARY:
            _copy(source, target, name)
    summary = source.read_bytes(SUMMARY)
    assert summary is not None
    target.write_bytes(SUMMARY, summary)


def _copy(source: Folder, target: Folder, name: str) -> None:
    fs, path = open_filesystem(source.sub(name).path)
    _, copy = open_filesystem(target.sub(name).path)
    fs.create_dir(copy.rsplit("/", 1)[0], recursive=True)
    pafs.copy_files(path, copy, source_filesystem=fs, destination_filesystem=fs)


def write_ranking(folder: Folder, ranking: Ranking, wanted: set[int]) -> dict[int, dict[str, Any]]:
    """Write `ranking.parquet`; gives the rows whose places in it are wanted."""
    rows_at, start = {}, 0
    with folder.open_table("ranking.parquet", ranking.schema) as write:
        for rows in ranking.rows():
            write(rows)
            for place in wanted:
                if start <= place < start + rows.num_rows:
                    (rows_at[place],) = rows.slice(place - start, 1).to_pylist()
            start += rows.num_rows
    return rows_at


def _write_selected(
    folder: Folder, pool: Pool, selected: set[str], wanted: set[str]
) -> dict[str, dict[str, Any]]:
    """Write `selected.jsonl`, source rows in source order; gives file and parts of what is wanted,
    by id."""
    written, texts = 0, {}
    columns = ["sample_id", "file", "source", "parts"]
    with folder.open_output("selected.jsonl") as stream:
        for table in pool_rows(pool, selected | wanted, columns):
            for row in table.to_pylist():
                if row["sample_id"] in selected:
                    stream.write(row["source"].encode() + b"\n")
                    written += 1
                if row["sample_id"] in wanted:
                    texts[row["sample_id"]] = {"file": row["file"], "parts": row["parts"]}
    assert written == len(selected), f"{written} of {len(selected)} selected rows were found"
    return texts


def _write_rejects(folder: Folder, ranking: Ranking) -> None:
    """Write `rejects.jsonl`: what ingest rejected, then what could not be scored."""
    pool = ranking.pool
    with folder.open_output("rejects.jsonl") as stream:
        for name in pool.rejects:
            for row in pool.folder.read_table(name).select(REJECTS.names).to_pylist():
                stream.write(_json_line(row))
        unscored = {row["sample_id"]: row for row in ranking.rejected.to_pylist()}
        if not unscored:
            return
        for table in pool_rows(pool, unscored, ["sample_id", "file", "line", "source"]):
            for row in table.to_pylist():
                rejected = unscored[row["sample_id"]]
                reject = Reject(rejected["reason"], rejected["detail"])
                stream.write(_json_line(reject_row({**row, "text": row["source"]}, reject)))


def _json_line(row: dict[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"


def _headings(ranking: Ranking) -> Iterator[tuple[str, str, str, str]]:
    """Headings of the examples in the report: text, fate, column to sort by, order."""
    up, down = "ascending", "descending"
    if not ranking.inputs.strategy.calibrates:
        first, last = (down, up) if ranking.inputs.strategy.end == "highest" else (up, down)
        yield "Selected", SELECTED, "value", first
        yield "Selected: drawn at random", SELECTED, "draw", up
        yield "Not selected", NOT_TOP, "value", last
        return
    yield "Selected: lowest ΔH", SELECTED, "delta_entropy", up
    yield "Selected: drawn at random", SELECTED, "draw", up
    for name in ranking.inputs.guards:
        measure = GUARDS[name].measure
        yield f"Selected: highest {GUARD_LABELS[measure]}", SELECTED, measure, down
        yield f"Excluded: highest {GUARD_LABELS[measure]}", EXCLUDED, measure, down
    yield "Left in the band: highest ΔH", NOT_TOP, "delta_entropy", down
    yield "Below the band: lowest ΔNLL", BELOW, "delta_nll", up
    yield "Above the band: highest ΔNLL", ABOVE, "delta_nll", down


def _examples(ranking: Ranking) -> dict[str, list[int]]:
    """Places in the ranking of the rows to show under each heading."""
    count = ranking.table.num_rows
    draw = np.random.default_rng(ranking.inputs.seed).random(count)
    table = ranking.table.append_column("place", pa.array(np.arange(count)))
    table = table.append_column("draw", pa.array(draw))
    places = {}
    for heading, fate, column, order in _headings(ranking):
        rows = table.filter(pc.equal(table["fate"], fate)).select([column, "place"])
        rows = rows.filter(pc.is_finite(rows[column]))
        keys = [(column, order), ("place", "ascending")]
        first = pc.select_k_unstable(rows, EXAMPLES_EACH, sort_keys=keys)
        places[heading] = rows.take(first)["place"].to_pylist()
    return {heading: shown for heading, shown in places.items() if shown}


def _example(row: dict[str, Any], measures: Sequence[str], parts: list[dict[str, str]]) -> Example:
    shown = {name: label for name, label in LABELS.items() if name in measures} | GUARD_LABELS
    return Example(
        sample_id=row["sample_id"],
        domain=row["domain"],
        fate=f"excluded by {row['excluded_by']}" if row["excluded_by"] else row["fate"],
        measures={label: row[name] for name, label in shown.items() if name in row},
        prompt=_text(part["text"] for part in parts[:-1]),
        response=parts[-1]["text"],
    )


def _text(texts: Iterable[str]) -> str:
    return "\n\n".join(texts)
