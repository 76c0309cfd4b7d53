"""The texts of benchmarks, which samples may not contain, from files or the Hub.

They are read when a command begins, for what they say is part of the pool's key.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from instructdiff_ray.config.clean import CleanConfig
from instructdiff_ray.config.data import DataConfig
from instructdiff_ray.errors import UserError, require
from instructdiff_ray.pool.contamination import Benchmarks, BenchmarkText, index_benchmarks
from instructdiff_ray.pool.files import source_files
from instructdiff_ray.pool.hub_data import is_hub, pin_paths
from instructdiff_ray.pool.readers import read_rows
from instructdiff_ray.pool.schemas import ASKED, parse_row
from instructdiff_ray.pool.source import FileRange, SourceFile, extension
from instructdiff_ray.sample import Reject
from instructdiff_ray.storage.hub_client import SCHEME, HubPath

TEXT = ".txt"
# What a benchmark is judged by, where a dataset's name alone is given.
SPLIT = "test"


def pin_benchmarks(clean: CleanConfig, say: Callable[[str], None]) -> CleanConfig:
    """The same with each dataset of the Hub at the commit that is its revision's now.

    say: is told of each. Raises UserError in one line for what can't be reached or is not there.
    """
    if not clean.benchmarks:
        return clean
    try:
        data = pin_paths(DataConfig(path=clean.benchmarks), lambda line: say(_renamed(line)))
    except UserError as error:
        raise UserError(_renamed(str(error))) from None
    return replace(clean, benchmarks=data.paths)


def load_benchmarks(clean: CleanConfig) -> Benchmarks | None:
    """What is looked for in samples; None where no benchmark is named.

    Raises UserError for a path that names nothing, a row that can't be read, and a benchmark
    without text.
    """
    if not clean.benchmarks:
        return None
    files = tuple(file for path in clean.benchmarks for file in _files(path))
    return _index(files, clean.ngram)


@lru_cache(1)  # a command asks several times, for keys
def _index(files: tuple[SourceFile, ...], ngram: int) -> Benchmarks:
    benchmarks = index_benchmarks((text for file in files for text in _texts(file)), ngram)
    used = {file for file, _ in benchmarks.places}
    for file in files:
        require(
            file.path in used,
            f"clean.benchmarks: {file.path} holds no text of two words or more to look for; leave"
            " it out, or name another",
        )
    return benchmarks


def _files(path: str) -> Sequence[SourceFile]:
    if extension(path) == TEXT:
        # The reader of JSON Lines gives lines as they are; what is in them is the parser's matter.
        data = DataConfig(path=path, format="jsonl")
    else:
        whole = is_hub(path) and not HubPath.parse(path).inner
        data = DataConfig(path=path, split=SPLIT if whole else None)
    try:
        return source_files(data)
    except UserError as error:
        line = _renamed(str(error).removesuffix(", or set data.format"))
        # Subsets and splits of the pool are no matter of a benchmark.
        line, *of_pool = re.split(r"(?:;|: name one,)[^;]* as in data\.(?:subset|split)=", line)
        hint = f"; name the files that you mean, as in {SCHEME}datasets/org/name/main/test-*"
        raise UserError(line + hint * bool(of_pool)) from None


def _texts(file: SourceFile) -> Iterator[BenchmarkText]:
    for row in read_rows(FileRange(file)):
        if row.reason is not None:
            raise UserError(
                f"clean.benchmarks: {file.path} line {row.line} can't be read ({row.reason}:"
                f" {row.detail}); mend it, or leave the file out"
            )
        if extension(file.path) == TEXT:
            yield BenchmarkText(file.path, row.line, row.text, asked=True)
            continue
        try:
            content = json.loads(row.text)
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"clean.benchmarks: {file.path} line {row.line} is no JSON ({error}); mend it, or"
                f" leave the file out (plain text is read of {TEXT} files)"
            ) from None
        asked = _asked(row.text, content)
        for text in _strings(content):
            yield BenchmarkText(file.path, row.line, text, text in asked)


def _asked(text: str, content: Any) -> set[str]:
    """Of a row's texts those that ask: by its schema, where it is that of a sample, or by the names
    of its columns."""
    try:
        _, parts = parse_row(text)
    except Reject:
        named = content.items() if isinstance(content, dict) else ()
        return {value for name, value in named if name.lower() in ASKED and isinstance(value, str)}
    return {part.text for part in parts if part.kind in ("instruction", "input")}


def _strings(value: Any) -> Iterator[str]:
    """All texts in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)


def _renamed(line: str) -> str:
    """What is said of data.path, of the setting that is meant here."""
    return line.replace("data.path", "clean.benchmarks")
