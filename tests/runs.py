"""A run's folder with selection, ranking, formats and card, made by the library from given rows."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from instructdiff_ray.config.clean import CleanConfig
from instructdiff_ray.config.data import ModelConfig
from instructdiff_ray.config.output import FORMATS, OutputConfig
from instructdiff_ray.config.run import Config
from instructdiff_ray.context import RunContext
from instructdiff_ray.models.model import Model
from instructdiff_ray.pool.schemas import parse_row
from instructdiff_ray.progress import Progress
from instructdiff_ray.results.card import CARD, render_card
from instructdiff_ray.results.formats import open_formats
from instructdiff_ray.results.row_schema import RowSchema
from instructdiff_ray.selection.ranking import RANKING
from instructdiff_ray.storage.artifacts import Storage
from instructdiff_ray.storage.filesystem import Folder
from tests.results.test_report import ranked, summary_of

COMMIT = "c" * 40
# One of each schema; a conversation, a system prompt, an input.
ROWS: list[dict[str, Any]] = [
    {"instruction": "Add.", "input": "2 and 3", "output": "5"},
    {"question": "Why is the sky blue?", "answer": 'Rayleigh scattering, "blue" most.\nSo.'},
    {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello."},
            {"role": "user", "content": "Name a prime."},
            {"role": "assistant", "content": "7"},
        ]
    },
    {"conversations": [{"from": "human", "value": "Größe?"}, {"from": "gpt", "value": "1,80 m"}]},
]


def make_run(
    path: Path,
    rows: Sequence[dict[str, Any]] = ROWS,
    formats: Sequence[str] = FORMATS,
    base: str = "/home/someone/models/tiny",
    revision: str | None = None,
    rejects: Sequence[dict[str, Any]] = (),
    clean: CleanConfig | None = None,
    **summary: Any,
) -> Path:
    """A finished run whose selection is these rows, each block of ten written at once."""
    folder, schema = Folder(str(path)), RowSchema()
    texts = [json.dumps(row, ensure_ascii=False) for row in rows]
    (path / "selected.jsonl").write_text("".join(f"{text}\n" for text in texts))
    (path / "rejects.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rejects))
    with open_formats(folder, formats) as write_samples:
        for start in range(0, len(texts), 10):
            block = texts[start : start + 10]
            schema.add(block)
            write_samples([parse_row(text)[1] for text in block])
    pq.write_table(pa.Table.from_pylist([{"sample_id": "a"}], RANKING), path / "ranking.parquet")
    values = summary_of({"math": ranked(100)}) | {"concentrations": []} | summary
    values["counts"] = {**values["counts"], "selected": len(rows)}
    model = Model(base, revision, False, "1234", None)
    config = Config(
        model=ModelConfig(base=base),
        output=OutputConfig([*formats]),
        clean=clean or CleanConfig(),
    )
    context = RunContext(
        config, [], model, model, {}, Storage(str(path)), folder, Progress(io.StringIO())
    )
    card = render_card(context, values, RANKING.names, folder.sizes(), schema.features())
    folder.write_bytes(CARD, card.encode())
    folder.write_json("summary.json", values)
    folder.write_bytes("config.yaml", b"data: {path: /home/someone/pool.jsonl}\n")
    folder.write_bytes("report/index.html", b"<p>/home/someone</p>")
    return path
