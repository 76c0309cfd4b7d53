"""What a run leaves in its folder: selection, ranking, rejects, summary, configuration, report and
a data set's card.

`summary.json` is deleted first and written last: a folder that has one is complete.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import yaml

from instructdiff_ray.config.run import Config
from instructdiff_ray.context import RunContext
from instructdiff_ray.pipeline import Round, score_shown
from instructdiff_ray.pool.dataset import pool_rows
from instructdiff_ray.pool.partition import among, id_array
from instructdiff_ray.pool.pool import REJECTS_FILE, Pool, reject_row
from instructdiff_ray.results.card import CARD, render_card
from instructdiff_ray.results.composition import (
    Concentration,
    comparable_draws,
    compare_with_pool,
)
from instructdiff_ray.results.examples import Shown, choose_examples
from instructdiff_ray.results.formats import FORMATS_FOLDER, open_formats
from instructdiff_ray.results.report import render_report
from instructdiff_ray.results.row_schema import RowSchema
from instructdiff_ray.results.status import REPORT, SUMMARY
from instructdiff_ray.results.summary import summarize
from instructdiff_ray.sample import Part, Reject
from instructdiff_ray.selection.ranking import Ranking, selected_id_array
from instructdiff_ray.selection.select import SELECTED
from instructdiff_ray.storage.filesystem import Folder, open_filesystem


def write_round(context: RunContext, result: Round, build: bool = True) -> dict[str, Any]:
    """Write the outputs of one round, and give its summary; the last round's outputs also show at
    the top of the folder.

    build: whether models may read the report's examples once more, for their tokens.
    """
    rounds, ranking = context.config.rounds, result.ranking
    folder = context.folder.sub(f"round-{result.number}") if rounds > 1 else context.folder
    config_text = config_yaml(context.config)
    with context.progress.stage("write", "rows") as stage:
        if result.number == 1:
            start_run_folder(context.folder)
        formats = context.config.output.formats
        shown, concentrations, rows = write_files(folder, ranking, config_text, formats)
        stage.add(int(ranking.has_fate(SELECTED).sum()))
    tokens = score_shown(context, result, shown.samples, build)
    with context.progress.stage("report", "examples") as stage:
        examples = shown.examples(ranking.inputs.measures, tokens)
        summary = summarize(context, result, concentrations)
        page = render_report(summary, ranking.table, config_text, examples)
        folder.write_bytes(REPORT, page.encode())
        stage.add(sum(map(len, examples.values())))
        earlier = context.progress.seconds.get("report", 0.0)
        summary["seconds"]["report"] = earlier + stage.elapsed()
        columns, features = ranking.schema.names, rows.features()
        card = render_card(context, summary, columns, folder.sizes(), features)
        folder.write_bytes(CARD, card.encode())
        folder.write_json(SUMMARY, summary)
        if result.number == rounds > 1:
            copy_outputs(folder, context.folder)
    return summary


def config_yaml(config: Config) -> str:
    """The resolved configuration, as `config.yaml` has it."""
    return yaml.safe_dump(asdict(config), allow_unicode=True, sort_keys=False)


def write_files(
    folder: Folder, ranking: Ranking, config_text: str, formats: Sequence[str]
) -> tuple[Shown, list[Concentration], RowSchema]:
    """Write the files of one round into `folder`, but the report, the card and the summary, which
    makes them complete; gives what the report is to show of its samples, what fills the selection,
    and the schema of its rows."""
    folder.delete(SUMMARY)
    places, drawn = choose_examples(ranking), comparable_draws(ranking)
    rows = write_ranking(folder, ranking, {*chain(*places.values(), *drawn)})
    headings = {heading: [rows[i] for i in chosen] for heading, chosen in places.items()}
    examples = [rows[i]["sample_id"] for i in {*chain(*places.values())}]
    wanted = {row["sample_id"] for row in rows.values()}
    selected = selected_id_array(ranking)
    texts, schema = _write_selected(folder, ranking.pool, selected, wanted, formats)
    _write_rejects(folder, ranking)
    folder.write_bytes("config.yaml", config_text.encode())
    parts = {name: _parts(texts[name]["parts"]) for name in examples}
    compared = [[texts[rows[i]["sample_id"]] for i in draw] for draw in drawn]
    return Shown(headings, parts), compare_with_pool(*compared), schema


def start_run_folder(folder: Folder) -> None:
    """Make way in a folder that an earlier run has left: nothing of it passes for the new one's."""
    folder.delete(SUMMARY)
    for name in {name.split("/")[0] for name in folder.sizes() if name.startswith("round-")}:
        folder.delete(name)


def copy_outputs(source: Folder, target: Folder) -> None:
    """Show one round's outputs at the top of the run's folder."""
    target.delete(SUMMARY)
    target.delete(FORMATS_FOLDER)
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
    folder: Folder, pool: Pool, selected: np.ndarray, wanted: set[str], formats: Sequence[str]
) -> tuple[dict[str, dict[str, Any]], RowSchema]:
    """Write `selected.jsonl`, source rows in source order, and the formats; gives file and parts of
    what is wanted, by id, and the schema of the rows. selected: sorted ids."""
    written, texts, schema = 0, {}, RowSchema()
    columns = ["sample_id", "file", "source", "parts"]
    shown = np.array(sorted(wanted), dtype="S")
    with (
        open_formats(folder, formats) as write_samples,
        folder.open_output("selected.jsonl") as stream,
    ):
        for table in pool_rows(pool, np.union1d(selected, shown), columns):
            ids = id_array(table)
            chosen = table.filter(pa.array(among(ids, selected)))
            sources = chosen["source"].to_pylist()
            for source in sources:
                stream.write(source.encode() + b"\n")
            schema.add(sources)
            if formats and sources:
                write_samples([_parts(parts) for parts in chosen["parts"].to_pylist()])
            written += chosen.num_rows
            for row in table.filter(pa.array(among(ids, shown))).to_pylist():
                texts[row["sample_id"]] = {"file": row["file"], "parts": row["parts"]}
    assert written == len(selected), f"{written} of {len(selected)} selected rows were found"
    return texts, schema


def _parts(stored: Sequence[dict[str, Any]]) -> list[Part]:
    return [Part(**part) for part in stored]


def _write_rejects(folder: Folder, ranking: Ranking) -> None:
    """Write `rejects.jsonl`: what ingest rejected, then what could not be scored."""
    pool = ranking.pool
    with folder.open_output("rejects.jsonl") as stream:
        for table in pool.folder.read_row_groups(REJECTS_FILE):
            for row in table.to_pylist():
                stream.write(_json_line(row))
        unscored = {row["sample_id"]: row for row in ranking.rejected.to_pylist()}
        if not unscored:
            return
        ids = np.array(sorted(unscored), dtype="S")
        for table in pool_rows(pool, ids, ["sample_id", "file", "line", "source"]):
            for row in table.to_pylist():
                rejected = unscored[row["sample_id"]]
                reject = Reject(rejected["reason"], rejected["detail"])
                stream.write(_json_line(reject_row({**row, "text": row["source"]}, reject)))


def _json_line(row: dict[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"
