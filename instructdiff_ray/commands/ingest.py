"""The pool of source files, alone: rows read, checked and counted, duplicates left out.

Examples:
  instructdiff ingest data.path=pool.jsonl model.base=/models/base domain=math
  instructdiff ingest data.path='s3://bucket/pool/*.parquet' data.limit=1000 model=qwen2.5-0.5b
"""

from __future__ import annotations

from collections.abc import Sequence

from instructdiff_ray.commands.launch import launch
from instructdiff_ray.context import RunContext
from instructdiff_ray.pipeline import ingest_pool


def stage(context: RunContext) -> None:
    pool = ingest_pool(context)
    rejected = sum(pool.counts["rejected"].values())
    context.progress.say(
        f"read {pool.counts['read']:,}, rejected {rejected:,}, pool {len(pool):,}:"
        f" {pool.folder.path}"
    )


def main(arguments: Sequence[str]) -> None:
    launch("ingest", stage, arguments)
