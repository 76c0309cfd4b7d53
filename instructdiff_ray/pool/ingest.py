"""Ingest: raw files to the pool, with Ray Data.

Reading splits files into rows; a second stage, spread over the cluster, parses, renders and
measures them and writes each block as one part of valid rows and one of rejects. To the driver come
back only narrow columns (id, domain, lengths), from which it finds exact duplicates; the few parts
that hold any are written again without them.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray.data

from instructdiff_ray.config.data import DataConfig
from instructdiff_ray.config.run import Config
from instructdiff_ray.errors import UserError
from instructdiff_ray.models.encoding import EncoderSpec
from instructdiff_ray.models.model import Model
from instructdiff_ray.models.template import Encoded
from instructdiff_ray.pool.dataset import stream
from instructdiff_ray.pool.dedup import Deduplicator
from instructdiff_ray.pool.files import source_files
from instructdiff_ray.pool.pool import POOL, REJECTS, Pool, open_pool, reject_row
from instructdiff_ray.pool.readers import FORMATS, SourceFile, read_rows
from instructdiff_ray.pool.schemas import domain_of, parse_row
from instructdiff_ray.progress import Progress
from instructdiff_ray.sample import Part, Reject, sample_id
from instructdiff_ray.storage.artifacts import Artifact, FinishedArtifact, Storage, make_key
from instructdiff_ray.storage.filesystem import Folder

VERSION = 3  # of what this stage computes; raise it when the same input gives another pool
ROWS_PER_PART = 4096
READ_CHUNK_ROWS = 1024
# To start a reader costs as much as to read this.
BYTES_PER_READER = 4 << 20


def pool_artifact(
    config: Config, files: Sequence[SourceFile], model: Model, storage: Storage
) -> tuple[Artifact, dict[str, Any]]:
    """Where the pool of these files is or will be, and what its key is made of.

    A source file is known by path, size and modification time: reading terabytes to find that
    nothing changed would cost more than ingesting again, which runs no model.
    """
    data = asdict(config.data)
    for name in ("path", "max_reject_ratio"):  # the one is in `files`, the other changes no pool
        del data[name]
    inputs = {
        "version": VERSION,
        "files": [asdict(file) for file in files],
        "data": data,
        "domain": config.domain,
        **EncoderSpec.of(config, model).key_inputs(),
    }
    return storage.artifact("pool", make_key(**inputs)), inputs


def ingest(
    config: Config,
    files: Sequence[SourceFile],
    model: Model,
    storage: Storage,
    progress: Progress,
) -> Pool:
    """The pool of these files, from storage or made now.

    files: as `source_files(config.data)` listed them. Raises UserError for a pool without a valid
    row, or a file that has changed since it was listed.
    """
    artifact, inputs = pool_artifact(config, files, model, storage)
    with artifact.lock(progress.say) as finished:
        return open_pool(finished or _make_pool(config, files, model, artifact, inputs, progress))


def _make_pool(
    config: Config,
    files: Sequence[SourceFile],
    model: Model,
    artifact: Artifact,
    inputs: dict[str, Any],
    progress: Progress,
) -> FinishedArtifact:
    with artifact.writer() as writer, progress.stage("ingest", "rows", _bytes(files)) as stage:
        deduplicator = Deduplicator(config.data.keep_duplicates, writer.folder)
        for receipt in _parse_files(files, config, model, writer.folder):
            deduplicator.add(receipt)
            stage.add(receipt.num_rows, work=pc.sum(receipt["bytes"]).as_py())
        info = deduplicator.finish()
        if not config.data.limit:  # a quick look, at files that may be growing
            _check_unchanged(config.data, files)
        if not info["counts"]["pool"]:
            raise UserError(_empty_pool(config.data.paths, info["counts"]["rejected"]))
        return writer.finish(inputs, info)


def _check_unchanged(data: DataConfig, files: Sequence[SourceFile]) -> None:
    """Raises UserError where a file is not what its entry in the pool's key says any more: it may
    have changed since it was listed, before or while it was read."""
    present = {file.path: file for file in source_files(data)}
    changed = [file.path for file in files if present.get(file.path) != file]
    if changed:
        others = f" and {len(changed) - 1} other files" if len(changed) > 1 else ""
        raise UserError(
            f"{changed[0]}{others} changed while the pool was read; give the same command again"
            " when nothing writes there"
        )


def _bytes(files: Sequence[SourceFile]) -> int | None:
    """Bytes of text to come, where the files' sizes tell it."""
    if any(file.compressed or not FORMATS[file.format].is_text for file in files):
        return None
    return sum(file.size for file in files)


def _parse_files(
    files: Sequence[SourceFile], config: Config, model: Model, folder: Folder
) -> Iterator[pa.Table]:
    """Run the Ray Data pipeline; yields receipts: a narrow row for each row, in source order."""
    parse = ParseRows(config.data, config.domain, EncoderSpec.of(config, model), folder)
    # A limit is a quick look: one reader takes the first rows of all files in their order.
    parts = [files] if config.data.limit else reader_groups(files)
    items = [{"files": [asdict(file) for file in part]} for part in parts]
    dataset = (
        ray.data.from_items(items, override_num_blocks=len(items))
        .map_batches(partial(read_files, limit=config.data.limit), batch_size=1)
        # Blocks of this size are parsed wherever there is a CPU, not where the file was read:
        # only a strict repartition keeps Ray from fusing the two stages into one task.
        .repartition(target_num_rows_per_block=ROWS_PER_PART, strict=True)
        .map_batches(parse, batch_size=None, batch_format="pyarrow")
    )
    dataset.context.execution_options.preserve_order = True
    return stream(dataset)


def reader_groups(files: Sequence[SourceFile]) -> Iterator[list[SourceFile]]:
    """Files in their order, one reader's each: a large one, or many small ones."""
    group: list[SourceFile] = []
    size = 0
    for file in files:
        if group and size + file.size > BYTES_PER_READER:
            yield group
            group, size = [], 0
        group.append(file)
        size += file.size
    yield group


def read_files(batch: dict[str, Any], limit: int | None) -> Iterator[pa.Table]:
    """Rows of the files of one group, as they come, in tables of a bounded number of rows."""
    files = [SourceFile(**file) for file in batch["files"][0]]
    rows = islice(
        ((file.path, file.domain, *row) for file in files for row in read_rows(file)), limit
    )
    schema = pa.schema(
        [
            ("file", pa.string()),
            ("domain", pa.string()),
            ("line", pa.int64()),
            ("text", pa.large_string()),
            ("reason", pa.string()),
            ("detail", pa.string()),
        ]
    )
    while chunk := list(islice(rows, READ_CHUNK_ROWS)):
        yield pa.table(
            [
                pa.array(column, field.type)
                for column, field in zip(zip(*chunk, strict=True), schema, strict=True)
            ],
            schema=schema,
        )


class ParseRows:
    """Parses, renders and measures a block of raw rows and writes it as a part of the pool.

    Called with a table of (file, domain, line, text, reason, detail); gives the receipt: a row for
    each with its fate, and the names of the part files that were written.
    """

    def __init__(
        self, data: DataConfig, domain: str, encoding: EncoderSpec, folder: Folder
    ) -> None:
        self.data = data
        self.domain = domain
        self.encoding = encoding
        self.folder = folder

    def __call__(self, raw: pa.Table) -> pa.Table:
        rows = raw.to_pylist()
        parsed = [self._parse(row) for row in rows]
        samples = [result[0] for result in parsed if not isinstance(result, Reject)]
        encoder = self.encoding.encoder()
        encoded = iter(encoder.encode(samples))
        asked = iter(encoder.instruction_tokens(samples))
        pool, rejects, receipt = [], [], []
        for row, result in zip(rows, parsed, strict=True):
            tokens = result if isinstance(result, Reject) else next(encoded)
            instruction_tokens = 0 if isinstance(result, Reject) else next(asked)
            if isinstance(tokens, Reject):
                rejects.append(reject_row(row, tokens))
                receipt.append({"reason": tokens.reason})
            elif not isinstance(result, Reject):
                pool.append(_sample(row, *result, tokens, instruction_tokens))
                receipt.append({name: pool[-1][name] for name in RECEIPT_COLUMNS})
        return self._write(raw, pool, rejects, receipt)

    def _parse(self, row: dict[str, Any]) -> tuple[list[Part], str] | Reject:
        if row["reason"] is not None:
            return Reject(row["reason"], row["detail"])
        try:
            source, parts = parse_row(row["text"], self.data.columns)
            return parts, domain_of(source, self.data.domain_column, row["domain"] or self.domain)
        except Reject as reject:
            return reject

    def _write(
        self, raw: pa.Table, pool: list[dict], rejects: list[dict], receipt: list[dict]
    ) -> pa.Table:
        name = uuid.uuid4().hex
        part, bad = f"part-{name}.parquet", f"rejects-{name}.parquet"
        if pool:
            self.folder.write_table(part, pa.Table.from_pylist(pool, POOL))
        if rejects:
            self.folder.write_table(bad, pa.Table.from_pylist(rejects, REJECTS))
        columns = {"block": name, "bytes": 0}
        for row, text in zip(receipt, raw["text"].to_pylist(), strict=True):
            row.update(columns, bytes=len(text))
        return pa.Table.from_pylist(receipt, RECEIPT.append(pa.field("bytes", pa.int64())))


RECEIPT_COLUMNS = (
    "sample_id",
    "domain",
    "tokens",
    "response_tokens",
    "instruction_tokens",
    "truncated",
)
RECEIPT = pa.schema(
    [POOL.field(name) for name in RECEIPT_COLUMNS]
    + [REJECTS.field("reason"), pa.field("block", pa.string())]
)


def _sample(
    row: dict[str, Any],
    parts: list[Part],
    domain: str,
    encoded: Encoded,
    instruction_tokens: int,
) -> dict[str, Any]:
    return {
        "sample_id": sample_id(parts),
        "domain": domain,
        "parts": [part._asdict() for part in parts],
        "tokens": len(encoded.input_ids),
        "response_tokens": sum(encoded.response),
        "instruction_tokens": instruction_tokens,
        "truncated": encoded.truncated,
        "source": row["text"],
        "file": row["file"],
        "line": row["line"],
    }


def _empty_pool(paths: Sequence[str], rejected: Mapping[str, int]) -> str:
    if not rejected:
        return f"data.path={', '.join(paths)} holds no row"
    reasons = ", ".join(f"{reason} {count}" for reason, count in rejected.items())
    return (
        f"data.path={', '.join(paths)} holds no valid row; all were rejected ({reasons}). See"
        " data.columns and calibrate.max_length"
    )
