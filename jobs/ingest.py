"""Raw files to the pool, alone: `python jobs/ingest.py data.path=… model.base=…`."""

from _launch import launch

from instructdiff_ray.pipeline import Run


def main(run: Run) -> None:
    pool = run.ingest()
    rejected = sum(pool.counts["rejected"].values())
    run.progress.say(
        f"read {pool.counts['read']:,}, rejected {rejected:,}, pool {len(pool):,}:"
        f" {pool.folder.path}"
    )


if __name__ == "__main__":
    launch(main)
