"""Publish a finished run as a data set: `instructdiff push RUN ORGANISATION/NAME [--yes]`.

Shows what it would upload to the Hugging Face Hub, and with --yes uploads it, in one commit: the
card, the selection, the ranking and the formats. The repository is private unless --public is
given. The rejects are rows of the source that were no valid samples; they stay here unless
--rejects is given. The configuration, the summary and the report always stay.
"""

from __future__ import annotations

import sys
import tempfile
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence

from huggingface_hub.utils import disable_progress_bars

from instructdiff_ray.errors import UserError
from instructdiff_ray.results.console import aligned_table
from instructdiff_ray.results.push import Upload, plan_upload, push
from instructdiff_ray.storage.filesystem import Folder, absolute, is_uri


def main(arguments: Sequence[str]) -> None:
    parser = ArgumentParser(
        prog="instructdiff push", description=__doc__, formatter_class=RawDescriptionHelpFormatter
    )
    parser.add_argument("run", help="a run's folder or URI, or that of one of its rounds")
    parser.add_argument("repository", help="ORGANISATION/NAME, or YOU/NAME; it must be new")
    parser.add_argument("--yes", action="store_true", help="upload what is shown")
    parser.add_argument("--public", action="store_true", help="for all to see (default: private)")
    parser.add_argument("--rejects", action="store_true", help="with the rejected rows")
    given = parser.parse_args(arguments)
    try:
        folder = Folder(absolute(given.run))
        upload = plan_upload(folder, given.repository, given.public, given.rejects)
        show(upload)
        if not given.yes:
            print("\ngive --yes to upload them")
            return
        disable_progress_bars()
        print(f"\nuploaded to {_push(upload)}")
    except (UserError, OSError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")


def show(upload: Upload) -> None:
    """Print the files and where they would go."""
    rows = [["file", "MB"]]
    rows += [[name, f"{size / 1e6:,.3f}"] for name, size in upload.sizes.items()]
    print(aligned_table(rows, text_columns=1))
    who = "public: all can read it" if upload.public else "private"
    total = sum(upload.sizes.values()) / 1e6
    print(f"\n{total:,.3f} MB to the data set {upload.repository} ({who})")


def _push(upload: Upload) -> str:
    if not is_uri(upload.folder.path):
        return push(upload, upload.folder.path)
    with tempfile.TemporaryDirectory() as local:
        upload.folder.download(local)
        return push(upload, local)
