"""A run's folder goes to the Hub: here to a stand-in, over HTTP."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub import DatasetCard, constants

from instructdiff_ray.commands.cli import main
from tests.receiving_hub import TOKEN, Hub, serving
from tests.results.test_card import REJECT
from tests.runs import make_run

Push = Callable[..., tuple[int, str, str]]
UPLOADED = {
    "README.md",
    "selected.jsonl",
    "ranking.parquet",
    "formats/messages.jsonl",
    "formats/dataset_info.json",
    "formats/llamafactory_v1.jsonl",
    "formats/axolotl.yaml",
    "formats/alpaca.parquet",
}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


@pytest.fixture
def push(capfd: pytest.CaptureFixture[str]) -> Push:
    """What `instructdiff push` does, in this process: exit status and output."""

    def run(*arguments: object) -> tuple[int, str, str]:
        try:
            main(["push", *map(str, arguments)])
        except SystemExit as ended:
            print(ended.code, file=sys.stderr)  # as Python does
            return 1, *capfd.readouterr()
        return 0, *capfd.readouterr()

    return run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path, rejects=[REJECT])


def test_it_shows_first_and_uploads_when_told_to(hub: Hub, push: Push, run: Path) -> None:
    status, out, _ = push(run, "me/data")
    assert status == 0 and hub.repositories == {}
    assert "me/data (private)" in out and "--yes" in out
    assert {line.split()[0] for line in out.splitlines() if "." in line.split(" ")[0]} >= UPLOADED
    status, out, err = push(run, "me/data", "--yes")
    assert (status, err) == (0, "")
    assert f"uploaded to {hub.endpoint}/datasets/me/data" in out
    assert hub.repositories == {"me/data": True} and len(hub.commits["me/data"]) == 1
    assert {*hub.files["me/data"]} == UPLOADED
    for name in UPLOADED - {"README.md"}:
        assert hub.files["me/data"][name] == (run / name).read_bytes()


def test_the_card_names_only_what_was_uploaded(hub: Hub, push: Push, run: Path) -> None:
    push(run, "me/data", "--yes")
    text = hub.files["me/data"]["README.md"].decode()
    names = [config["config_name"] for config in DatasetCard(text).data.configs]
    assert names == ["selected", "messages"] and '"rejects"' not in text
    rest = [line for line in (run / "README.md").read_text().splitlines() if "rejects" not in line]
    assert DatasetCard(text).text.splitlines()[-30:] == rest[-30:]
    assert not [data for data in hub.files["me/data"].values() if b"/home/someone" in data]


def test_rejects_and_the_public_are_asked_for(hub: Hub, push: Push, run: Path) -> None:
    assert "public: all can read it" in push(run, "me/data", "--public", "--rejects")[1]
    assert push(run, "me/data", "--public", "--rejects", "--yes")[0] == 0
    assert hub.repositories == {"me/data": False}
    assert {*hub.files["me/data"]} == UPLOADED | {"rejects.jsonl"}
    assert hub.files["me/data"]["README.md"] == (run / "README.md").read_bytes()


def test_a_repository_that_holds_something_is_left_alone(hub: Hub, push: Push, run: Path) -> None:
    hub.repositories["me/data"], hub.files["me/data"] = True, {"other.csv": b"1"}
    status, _, err = push(run, "me/data", "--yes")
    assert (status, hub.files["me/data"]) == (1, {"other.csv": b"1"})
    assert "not replaced; take another name" in err and err.count("\n") == 1


def test_a_push_that_failed_goes_on_where_the_repository_is_empty(
    hub: Hub, push: Push, run: Path
) -> None:
    hub.broken = True
    status, _, err = push(run, "me/data", "--yes")
    assert status == 1 and err.count("\n") == 1 and not hub.files["me/data"]
    hub.broken = False
    status, _, err = push(run, "me/data", "--yes", "--public")
    assert status == 1 and "exists and is private" in err
    assert push(run, "me/data", "--yes")[0] == 0 and hub.files["me/data"]


def mistake(push: Push, *arguments: object) -> str:
    status, out, err = push(*arguments, "--yes")
    assert status == 1 and err.startswith("error: ") and err.count("\n") == 1, (out, err)
    return err


def test_a_mistake_ends_in_one_line(
    hub: Hub, push: Push, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "others/data can't be written: your token may not" in mistake(push, run, "others/data")
    assert "ORGANISATION/NAME" in mistake(push, run, "data")
    assert "ORGANISATION/NAME" in mistake(push, run, "me/a data")
    assert "holds no finished run" in mistake(push, tmp_path / "nowhere", "me/data")
    (run / "summary.json").rename(run / "kept.json")
    assert "holds no finished run" in mistake(push, run, "me/data")
    (run / "kept.json").rename(run / "summary.json")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "hf auth login" in mistake(push, run, "me/data")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "offline" in mistake(push, run, "me/data")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "can't be reached" in mistake(push, run, "me/data")
    assert hub.repositories == {}
