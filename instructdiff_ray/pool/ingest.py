"""Ingest: raw files to the pool, with Ray Data.

Reading splits files into chunks of rows (chunks.py); a second stage, spread over the cluster,
parses, renders and measures the rows of a chunk and writes them as one part, valid rows and rejects
together. An ingest that was killed goes on with the chunks of which there is no part. When all are
there, duplicates are found and the index is written on the cluster (dedup.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import pyarrow as pa
import ray.data

from instructdiff_ray.config.data import DataConfig
from instructdiff_ray.config.run import Config
from instructdiff_ray.errors import UserError, require
from instructdiff_ray.models.encoding import EncoderSpec
from instructdiff_ray.models.model import Model
from instructdiff_ray.models.template import Encoded
from instructdiff_ray.pool.chunks import (
    CHUNKING,
    PART,
    Chunk,
    Group,
    parsed_chunks,
    read_chunks,
    reader_groups,
    unpacked,
    with_lines,
)
from instructdiff_ray.pool.cleaning import REASONS, RowFilters, key_inputs
from instructdiff_ray.pool.dataset import stream
from instructdiff_ray.pool.dedup import deduplicate
from instructdiff_ray.pool.files import source_files
from instructdiff_ray.pool.pool import ROWS, Pool, open_pool
from instructdiff_ray.pool.readers import FORMATS
from instructdiff_ray.pool.rejects import column_hint
from instructdiff_ray.pool.schemas import domain_of, parse_row
from instructdiff_ray.pool.source import FileRange, SourceFile
from instructdiff_ray.progress import Progress, Stage
from instructdiff_ray.sample import Part, Reject, sample_id
from instructdiff_ray.storage.artifacts import (
    ATTEMPT,
    Artifact,
    ArtifactWriter,
    FinishedArtifact,
    Storage,
    make_key,
)
from instructdiff_ray.storage.filesystem import Folder
from instructdiff_ray.telemetry import REJECTED_SAMPLES

VERSION = 4  # of what this stage computes; raise it when the same input gives another pool


def pool_artifact(
    config: Config, files: Sequence[SourceFile], model: Model, storage: Storage
) -> tuple[Artifact, dict[str, Any]]:
    """Where the pool of these files is or will be, and what its key is made of.

    A source file is known by path, size and modification time: reading terabytes to find that
    nothing changed would cost more than ingesting again, which runs no model.
    """
    data = asdict(config.data)
    # The last changes no pool, and what the others name is in `files`.
    for name in ("path", "subset", "split", "max_reject_ratio"):
        del data[name]
    inputs = {
        "version": VERSION,
        "files": [asdict(file) for file in files],
        "data": data,
        "domain": config.domain,
        **EncoderSpec.of(config, model).key_inputs(),
        **key_inputs(config.clean),
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
    # One name for all attempts: each goes on with the parts of those before.
    writer = artifact.writer_at(f"{ATTEMPT}{make_key(pool=artifact.key, chunks=CHUNKING)[:12]}")
    filters, encoding = RowFilters.of(config.clean), EncoderSpec.of(config, model)
    parse = ParseRows(config.data, config.domain, encoding, filters, writer.folder)
    # A limit is a quick look: one reader takes the first rows of all files in their order.
    first = config.data.limit
    groups = [[*map(FileRange, files)]] if first else [*reader_groups(files)]
    with progress.stage("ingest", "rows") as stage:
        _parse_groups(groups, parse, first, stage)
        if not first:  # a quick look, at files that may be growing
            _check_unchanged(config.data, files, writer)
        parts = sorted(parsed_parts(writer.folder))
        _check_complete(len(groups), parts)
        near = config.clean.near_duplicates
        info = deduplicate(parts, config.data.keep_duplicates, writer.folder, near)
        if not info["counts"]["pool"]:
            rejected = info["counts"]["rejected"]
            hint = column_hint(writer.folder, rejected)
            writer.folder.delete()
            raise UserError(empty_pool(config.data.paths, rejected, hint))
        for reason, count in info["counts"]["rejected"].items():
            REJECTED_SAMPLES.add(count, stage="ingest", model="", reason=reason)
        return writer.finish(inputs, info)


def parsed_parts(folder: Folder) -> list[str]:
    """The names of the parts that are there."""
    return [name for name in folder.sizes() if PART.fullmatch(name)]


def _parse_groups(
    groups: Sequence[Group], parse: ParseRows, limit: int | None, stage: Stage
) -> None:
    """Have a part for each chunk of the groups."""
    parsed = parsed_chunks(parsed_parts(parse.folder))
    left = [n for n in range(len(groups)) if n not in parsed or not parsed[n].complete]
    if not left:
        return
    stage.total = _bytes([source for n in left for source in groups[n]])
    groups = with_lines(groups)
    read = partial(
        read_chunks,
        limit=limit,
        done={n: parsed[n].chunks for n in left if n in parsed},
    )
    dataset = (
        ray.data.from_items(
            [{"group": n, "sources": [*map(asdict, groups[n])]} for n in left],
            override_num_blocks=len(left),
        )
        .map_batches(read, batch_size=1)
        # A chunk is parsed wherever there is a CPU, not where it was read: only a strict
        # repartition keeps Ray from fusing the two stages into one task.
        .repartition(target_num_rows_per_block=1, strict=True)
        .map_batches(parse, batch_size=1, batch_format="pyarrow")
    )
    for receipt in stream(dataset, "ingest"):
        for row in receipt.to_pylist():
            stage.add(row["rows"], work=row["characters"])


def _check_unchanged(data: DataConfig, files: Sequence[SourceFile], writer: ArtifactWriter) -> None:
    """Raises UserError where a file is not what its entry in the pool's key says any more: it may
    have changed since it was listed, before or while it was read."""
    present = {file.path: file for file in source_files(data)}
    changed = [file.path for file in files if present.get(file.path) != file]
    if changed:
        writer.folder.delete()  # its parts are of what the file is now
        others = f" and {len(changed) - 1} other files" if len(changed) > 1 else ""
        raise UserError(
            f"{changed[0]}{others} changed while the pool was read; give the same command again"
            " when nothing writes there"
        )


def _check_complete(groups: int, parts: Sequence[str]) -> None:
    parsed = parsed_chunks(parts)
    require(
        all(n in parsed and parsed[n].complete for n in range(groups)),
        "parts of the pool were deleted while it was made; give the same command again",
    )


def _bytes(ranges: Sequence[FileRange]) -> int | None:
    """Bytes of text to come, where the files' sizes tell it."""
    files = [source.file for source in ranges]
    if any(file.compressed or not FORMATS[file.format].is_text for file in files):
        return None
    ends = (source.file.size if source.end is None else source.end for source in ranges)
    return sum(end - source.start for source, end in zip(ranges, ends, strict=True))


class ParseRows:
    """Parses, renders and measures the rows of a chunk and writes them as a part of the pool; gives
    a receipt, one row."""

    def __init__(
        self,
        data: DataConfig,
        domain: str,
        encoding: EncoderSpec,
        filters: RowFilters,
        folder: Folder,
    ) -> None:
        self.data = data
        self.domain = domain
        self.encoding = encoding
        self.filters = filters
        self.folder = folder

    def __call__(self, packed: pa.Table) -> pa.Table:
        receipts = [self._write(chunk) for chunk in unpacked(packed)]
        return pa.Table.from_pylist(receipts)

    def _write(self, chunk: Chunk) -> dict[str, int]:
        rows = chunk.rows.to_pylist()
        parsed = parse_rows(rows, self.data, self.domain, self.encoding, self.filters)
        self.folder.write_table(chunk.part, pa.Table.from_pylist(parsed, ROWS))
        return {"rows": len(rows), "characters": sum(len(row["text"]) for row in rows)}


def parse_rows(
    rows: Sequence[dict[str, Any]],
    data: DataConfig,
    domain: str,
    encoding: EncoderSpec,
    filters: RowFilters,
) -> list[dict[str, Any]]:
    """What becomes of rows of RAW_ROWS, as ROWS with what is null left out: samples with their
    tokens counted, and rejects. domain: of those that name none."""
    parsed = [_parse(row, data, domain) for row in rows]
    samples = [result[0] for result in parsed if not isinstance(result, Reject)]
    encoder = encoding.encoder()
    encoded = iter(_filtered(samples, encoder.encode(samples), filters))
    asked = iter(encoder.instruction_tokens(samples))
    found = []
    for row, result in zip(rows, parsed, strict=True):
        tokens = result if isinstance(result, Reject) else next(encoded)
        instruction_tokens = 0 if isinstance(result, Reject) else next(asked)
        columns = {"source": row["text"], "file": row["file"], "line": row["line"]}
        if isinstance(tokens, Reject):
            columns |= {"reason": tokens.reason, "detail": tokens.detail}
        elif not isinstance(result, Reject):
            columns |= _sample(*result, tokens, instruction_tokens)
        found.append(columns)
    return found


def _filtered(
    samples: Sequence[list[Part]], encoded: Sequence[Encoded | Reject], filters: RowFilters
) -> list[Encoded | Reject]:
    """The samples as they are encoded, or why they stay out of the pool."""
    left = [number for number, sample in enumerate(encoded) if isinstance(sample, Encoded)]
    lengths = [sum(sample.response) for sample in encoded if isinstance(sample, Encoded)]
    result = [*encoded]
    for number, reject in zip(
        left, filters.check([samples[n] for n in left], lengths), strict=True
    ):
        result[number] = reject or encoded[number]
    return result


def _parse(row: dict[str, Any], data: DataConfig, domain: str) -> tuple[list[Part], str] | Reject:
    if row["reason"] is not None:
        return Reject(row["reason"], row["detail"])
    try:
        source, parts = parse_row(row["text"], data.columns)
        return parts, domain_of(source, data.domain_column, row["domain"] or domain)
    except Reject as reject:
        return reject


def _sample(
    parts: list[Part], domain: str, encoded: Encoded, instruction_tokens: int
) -> dict[str, Any]:
    return {
        "sample_id": sample_id(parts),
        "domain": domain,
        "parts": [part._asdict() for part in parts],
        "tokens": len(encoded.input_ids),
        "response_tokens": sum(encoded.response),
        "instruction_tokens": instruction_tokens,
        "truncated": encoded.truncated,
    }


def empty_pool(paths: Sequence[str], rejected: Mapping[str, int], hint: str | None = None) -> str:
    """The line that says so where there is no sample. hint: of the columns, as `column_hint`."""
    if not rejected:
        return f"data.path={', '.join(paths)} holds no row"
    reasons = ", ".join(f"{reason} {count}" for reason, count in rejected.items())
    cleaned = sum(count for reason, count in rejected.items() if reason in REASONS)
    settings = "clean" if cleaned * 2 > sum(rejected.values()) else "data.columns"
    advice = hint or f"see {settings} and calibrate.max_length"
    return (
        f"data.path={', '.join(paths)} holds no valid row; all were rejected ({reasons}); {advice}"
    )
