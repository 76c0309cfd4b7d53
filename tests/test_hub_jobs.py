"""Commands that read a dataset of the Hub: while it changes, and after they were killed."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults import started
from tests.hub import Hub, serving

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.slow
FILES, ROWS = 8, 300


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with serving(str(tmp_path / "home")) as server:
        yield server


def rows(file: int) -> bytes:
    """More than 2 MiB, so that each file is a reader's own, and little of it to tokenise."""
    notes = "x" * 7500
    rows = ({"question": f"{file} {n}?", "answer": "no", "notes": notes} for n in range(ROWS))
    return "\n".join(map(json.dumps, rows)).encode()


def shards() -> dict[str, bytes]:
    return {f"data/train-{n:05}-of-{FILES:05}.jsonl": rows(n) for n in range(FILES)}


def command(folder: Path, model: str) -> list[str]:
    return [
        *(sys.executable, str(ROOT / "jobs/ingest.py"), "data.path=org/name", "domain=math"),
        *(f"model.base={model}", f"storage={folder}/storage"),
    ]


def finish(folder: Path, model: str) -> None:
    with started(command(folder, model), folder / "log") as job:
        assert job.wait() == 0, (folder / "log").read_text()


def pools(folder: Path) -> list[dict[str, Any]]:
    """The manifests of all that are finished, in the order of time."""
    paths = sorted(folder.glob("storage/pool/*/manifest.json"), key=os.path.getmtime)
    return [json.loads(path.read_text()) for path in paths]


def test_a_branch_that_moves_while_it_is_read_is_read_by_the_next_command(
    hub: Hub, model_folder: str, tmp_path: Path
) -> None:
    repo = hub.repo("org/name", {"a.jsonl": rows(0)})
    first, hub.passing = repo.refs["main"], 0
    with started(command(tmp_path, model_folder), tmp_path / "log") as job:
        hub.wait_for_reader()
        second = repo.push({"a.jsonl": rows(0), "b.jsonl": rows(1)})
        hub.open()
        assert job.wait() == 0, (tmp_path / "log").read_text()
    finish(tmp_path, model_folder)
    before, after = pools(tmp_path)
    assert [pool["info"]["counts"]["pool"] for pool in (before, after)] == [ROWS, 2 * ROWS]
    assert [file["path"] for file in before["inputs"]["files"]] == [
        f"hf://datasets/org/name@{first}/a.jsonl"
    ]
    assert {file["path"].split("@")[1] for file in after["inputs"]["files"]} == {
        f"{second}/a.jsonl",
        f"{second}/b.jsonl",
    }


def test_an_ingest_that_was_killed_reads_only_what_is_left(
    hub: Hub, model_folder: str, tmp_path: Path
) -> None:
    hub.repo("org/name", shards())
    hub.passing = FILES // 2
    with started(command(tmp_path, model_folder), tmp_path / "log") as job:
        hub.wait_for_reader()
        while len(done := list(tmp_path.glob("storage/pool/*/attempt-*/part-*-last.parquet"))) < 2:
            assert job.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.02)
        job.kill()
    hub.open()
    hub.asked.clear()
    finish(tmp_path, model_folder)
    (pool,) = pools(tmp_path)
    assert pool["info"]["counts"]["pool"] == FILES * ROWS
    # The dataset and its files, and each file that no part is of.
    assert hub.asked["api"] == 2
    assert hub.asked["get"] == hub.asked["head"] <= FILES - len(done)
    hub.asked.clear()
    finish(tmp_path, model_folder)
    assert hub.asked == {"api": 2}


def test_columns_that_are_not_known_are_shown(hub: Hub, model_folder: str, tmp_path: Path) -> None:
    lines = [{"query": f"{n} + 1?", "reply": str(n + 1)} for n in range(20)]
    hub.repo("org/name", {"a.jsonl": "\n".join(map(json.dumps, lines)).encode()})
    with started(command(tmp_path, model_folder), tmp_path / "log") as job:
        assert job.wait() == 1
    last = (tmp_path / "log").read_text().splitlines()[-1]
    assert last.startswith("error: ")
    assert "'data.columns={instruction: query, response: reply}'" in last
    assert '{"query": "2 + 1?", "reply": "3"}' in last
