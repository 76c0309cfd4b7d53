"""Raw files to the pool, alone: `python jobs/ingest.py data.path=… model.base=…`."""

from _launch import launch

from instructdiff_ray.context import RunContext
from instructdiff_ray.pipeline import ingest_pool


def main(context: RunContext) -> None:
    pool = ingest_pool(context)
    rejected = sum(pool.counts["rejected"].values())
    context.progress.say(
        f"read {pool.counts['read']:,}, rejected {rejected:,}, pool {len(pool):,}:"
        f" {pool.folder.path}"
    )


if __name__ == "__main__":
    launch(main)
