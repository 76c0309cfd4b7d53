"""Share scores over the Hugging Face Hub: `instructdiff scores push|pull …`.

`push RUN ORGANISATION/NAME` shows which scores of a finished run it would upload, and with --yes
uploads them, in one commit: ids, numbers, what they were computed with, and a card; no text of the
pool. The repository is private unless --public is given.

`pull ORGANISATION/NAME[@REVISION] SETTING=VALUE …` takes the settings of `instructdiff run`. It
fetches the scores that such a run needs, checks them, and puts them where the run finds them: it
then runs no model. Where settings differ from those of the scores, it says which, and takes none.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence

from huggingface_hub.utils import disable_progress_bars

from instructdiff_ray.commands.launch import launch
from instructdiff_ray.context import RunContext
from instructdiff_ray.errors import UserError
from instructdiff_ray.results.console import aligned_table
from instructdiff_ray.results.push import check_name
from instructdiff_ray.sharing.publication import PUBLICATION, Publication
from instructdiff_ray.sharing.publish import collect, left_out, upload_scores
from instructdiff_ray.sharing.pull import pull
from instructdiff_ray.storage.filesystem import Folder, absolute

NAME = "instructdiff scores"
PUSH = "Show which scores of a finished run would go to the Hub, and with --yes upload them."
PULL = "Fetch the scores that a run with these settings needs, check them, and put them in storage."


def main(arguments: Sequence[str]) -> None:
    command, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if command == "push":
        push_scores(rest)
    elif command == "pull":
        pull_scores(rest)
    elif command in ("-h", "--help"):
        print(__doc__)
    else:
        sys.exit("error: say what to do with scores: instructdiff scores push … or pull …")


def push_scores(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog=f"{NAME} push", description=PUSH)
    parser.add_argument("run", help="a finished run's folder or URI; its storage must be there")
    parser.add_argument("repository", help="ORGANISATION/NAME, or YOU/NAME; it must be new")
    parser.add_argument("--yes", action="store_true", help="upload what is shown")
    parser.add_argument("--public", action="store_true", help="for all to see (default: private)")
    given = parser.parse_args(arguments)
    disable_progress_bars()
    try:
        check_name(given.repository)
        with tempfile.TemporaryDirectory() as local:
            publication = collect(Folder(absolute(given.run)), Folder(local))
            _show(publication, given.repository, given.public)
            if not given.yes:
                print("\ngive --yes to upload them")
                return
            address = upload_scores(publication, given.repository, given.public, local)
        print(f"\nuploaded to {address}")
    except (UserError, OSError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")


def _show(publication: Publication, repository: str, public: bool) -> None:
    """Print the scores and their files, and where they would go."""
    base = publication.base_model
    rows = [["scores", "model", "encoding", "file", "samples", "MB"]]
    for scores in publication.scores:
        encoding, precision = scores.scorer["rendering"], scores.scorer["precision"]
        name = " of ".join([scores.name, *([scores.domain] if scores.domain else [])])
        if scores.round > 1:
            name += f", round {scores.round}"
        how = f"{encoding['template']['name']}, {encoding['max_length']}, {precision}"
        model = f"calibrated {scores.trained}" if scores.trained else str(scores.scorer["model"])
        rows += [
            [name, model, how, file.name, f"{file.rows:,}", f"{file.size / 1e6:,.3f}"]
            for file in scores.files
        ]
    print(aligned_table(rows, text_columns=4))
    for (name, _), lacking in left_out(publication).items():
        print(
            f"{lacking:,} {name} scores are left out, for a machine was too small for the samples:"
            " who selects by these needs the model for them"
        )
    total = sum(file.size for scores in publication.scores for file in scores.files) / 1e6
    commit = f" at commit {base['commit']}" if base["commit"] else ", a local folder"
    who = "public: all can read it" if public else "private"
    print(
        f"\nbase model: {base['name']}{commit}; with {PUBLICATION} and a card, no text of the pool"
        f"\n{total:,.3f} MB to the data set {repository} ({who})"
    )


def pull_scores(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog=f"{NAME} pull", description=PULL)
    parser.add_argument("repository", help="ORGANISATION/NAME, or with @REVISION")
    parser.add_argument("settings", nargs="*", help="of `run`: name=value")
    parser.add_argument(
        "--recompute", type=int, default=0, metavar="N", help="score N samples here, and compare"
    )
    parser.add_argument(
        "--only", default="", metavar="NAMES", help="of all scores these, as in base,alone"
    )
    parser.add_argument("--config-dir", metavar="FOLDER", help="as of `instructdiff run`")
    given = parser.parse_intermixed_args(arguments)
    only = [name for name in given.only.split(",") if name]

    if given.recompute < 0:
        sys.exit(f"error: --recompute {given.recompute} must be 0 or more")

    def stage(context: RunContext) -> None:
        pull(context, given.repository, given.recompute, only)

    folder = ["--config-dir", given.config_dir] if given.config_dir else []
    launch("scores pull", stage, [*given.settings, *folder])
