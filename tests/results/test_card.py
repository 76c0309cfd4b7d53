"""The card of a run: what it says loads, and it tells no path of a machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.json as pa_json
import pyarrow.parquet as pq
import pytest
from huggingface_hub import DatasetCard, DatasetCardData

from instructdiff_ray.config.clean import CleanConfig
from instructdiff_ray.results.card import COLUMNS, plain, size_category
from instructdiff_ray.selection.guards import GUARDS
from instructdiff_ray.selection.ranking import DELTA_ENTROPY_STD, PROBABILITY, RANKING, VALUE
from tests.results.test_report import MIXTURE
from tests.runs import COMMIT, ROWS, make_run

ALPACA = [{"instruction": f"Question {i}?", "output": "a" * i} for i in range(1, 13)]
# More than the 10 MiB by which `datasets` guesses a JSON file's columns.
LARGE = [{"instruction": "a" * 100_000, "output": "b", "score": 1} for _ in range(110)]
REJECT = {"file": "/home/someone/pool.jsonl", "line": 3, "reason": "empty_response", "source": "x"}


def card_data(folder: Path) -> DatasetCardData:
    return DatasetCard((folder / "README.md").read_text()).data


def config_files(folder: Path) -> dict[str, str]:
    return {c["config_name"]: c["data_files"] for c in card_data(folder).configs}


def read_rows(path: Path) -> pa.Table:
    return pq.read_table(path) if path.suffix == ".parquet" else pa_json.read_json(path)


def test_every_file_that_the_card_names_is_there_and_has_one_schema(tmp_path: Path) -> None:
    folder = make_run(tmp_path, rejects=[REJECT])
    files = config_files(folder)
    rows = {name: read_rows(folder / file).num_rows for name, file in files.items()}
    assert rows == {"selected": len(ROWS), "messages": len(ROWS), "rejects": 1}
    text = (folder / "README.md").read_text()
    for file in ("ranking.parquet", "formats/alpaca.parquet"):
        assert f'pandas.read_parquet("<folder>/{file}")' in text and read_rows(folder / file)
    assert [c["config_name"] for c in card_data(folder).configs if c.get("default")] == ["selected"]


def test_without_rejects_and_formats_there_is_no_configuration_of_them(tmp_path: Path) -> None:
    assert list(config_files(make_run(tmp_path, ALPACA, formats=[]))) == ["selected"]


def test_the_columns_of_all_rows_are_said_whatever_schema_the_first_have(tmp_path: Path) -> None:
    (info,) = card_data(make_run(tmp_path, ALPACA + ROWS)).dataset_info
    assert info["config_name"] == "selected"
    text = {"dtype": "string"}
    turn = [{"name": "role", **text}, {"name": "content", **text}]
    assert {"name": "input", **text} in info["features"]
    assert {"name": "messages", "list": turn} in info["features"]


@pytest.mark.parametrize(
    "rows",
    [
        [{**ROWS[0], "id": 1}, {**ROWS[0], "id": "one"}],
        [*({**row, "id": 1} for row in ALPACA), *({**row, "id": "one"} for row in ALPACA)],
        [{**ROWS[0], "id": {}}],
    ],
    ids=["in one block", "in two blocks", "a struct without fields"],
)
def test_rows_without_a_common_schema_are_no_configuration(
    rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    folder = make_run(tmp_path, rows, formats=[])
    assert list(config_files(folder)) == ["ranking"]
    assert "output.formats=[trl]" in (folder / "README.md").read_text()
    folder = make_run(tmp_path, rows, formats=["trl"])
    assert list(config_files(folder)) == ["messages"]


def test_an_empty_selection_leaves_the_ranking(tmp_path: Path) -> None:
    assert list(config_files(make_run(tmp_path, [], rejects=[REJECT]))) == ["ranking"]


def test_it_tells_no_path_of_a_machine_and_keeps_texts_harmless(tmp_path: Path) -> None:
    source = "/home/someone/pools/math.jsonl"
    message = f"90% of the selection comes from {source}, but …"
    evil = "![x](https://evil.example) <script> | `"
    folder = make_run(
        tmp_path,
        rejects=[REJECT],
        concentrations=[{"kind": "one source", "value": source, "selected": 0.9, "pool": 0.1}],
        warnings=[{"name": "one source", "message": message}, {"name": "x", "message": evil}],
    )
    text = (folder / "README.md").read_text()
    assert "/home" not in text and str(tmp_path) not in text
    assert "comes from math.jsonl" in text and "| base model | tiny " in text
    assert r"\!\[x\]\(https://evil.example\) \<script\> \| \`" in text


def test_a_mixture_is_told_as_wanted_and_as_it_came(tmp_path: Path) -> None:
    text = (make_run(tmp_path, mixture=MIXTURE) / "README.md").read_text()
    assert "and what came, in response tokens:\n\n| domain | wanted | came |" in text
    assert "| math | 3,000 | 999 | 30.0 % | 12.5 % |\n\n## Load it" in text


def test_a_hub_model_has_its_name_and_commit(tmp_path: Path) -> None:
    folder = make_run(tmp_path, base="Qwen/Qwen2.5-0.5B", revision=COMMIT)
    assert f"Qwen/Qwen2.5-0.5B at commit {COMMIT}" in (folder / "README.md").read_text()


def test_scores_from_elsewhere_are_named(tmp_path: Path) -> None:
    origin = {"scores": "base", "repository": "me/scores", "commit": "c" * 40, "samples": 1234}
    text = (make_run(tmp_path, scores_from=[origin]) / "README.md").read_text()
    line = "| base scores | of 1,234 samples, of this pool or others, taken over from me/scores@ccc"
    assert line in text


def test_a_model_in_storage_has_the_name_of_what_it_is(tmp_path: Path) -> None:
    base = f"{tmp_path}/demo-model/0123456789abcdef/attempt-8372fd7e690b"
    text = (make_run(tmp_path, base=base) / "README.md").read_text()
    assert "| base model | demo-model 0123456789abcdef " in text and "attempt" not in text


def test_every_column_that_a_ranking_can_have_is_explained() -> None:
    fields = [*RANKING, VALUE, PROBABILITY, DELTA_ENTROPY_STD]
    measures = [guard.measure for guard in GUARDS.values()]
    assert {*COLUMNS} == {*(field.name for field in fields), *measures}


@pytest.mark.parametrize(
    ("rows", "name"), [(0, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (10**9, "1B<n<10B")]
)
def test_the_size_is_named_as_the_hub_does(rows: int, name: str) -> None:
    assert size_category(rows) == name


def test_plain_text_is_one_line() -> None:
    assert plain("a\n# b") == r"a \# b"


@pytest.mark.slow
@pytest.mark.parametrize("late", [ROWS, [{**LARGE[0], "score": 0.5}]], ids=["columns", "type"])
def test_datasets_loads_every_configuration(late: list[dict[str, Any]], tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="the package datasets is not installed")
    rows = LARGE + late
    folder = make_run(tmp_path, rows, rejects=[REJECT])

    def load(*name: str) -> Any:
        return datasets.load_dataset(str(folder), *name, cache_dir=str(tmp_path / "cache"))["train"]

    assert list(config_files(folder)) == ["selected", "messages", "rejects"]
    for name, file in config_files(folder).items():
        assert len(load(name)) == len((folder / file).read_text().splitlines())
    default = load()
    for row, loaded in zip(rows, default, strict=True):
        assert {key: loaded[key] for key in row} == row
        assert all(value is None for key, value in loaded.items() if key not in row)


@pytest.mark.slow
def test_datasets_loads_the_tables_where_rows_have_no_schema(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="the package datasets is not installed")
    rows = [{**ROWS[0], "id": 1}, {**ROWS[0], "id": "one"}]
    folder = make_run(tmp_path, rows, formats=["alpaca"], rejects=[REJECT])
    for name, count in {"alpaca": 2, "ranking": 1}.items():
        loaded = datasets.load_dataset(str(folder), name, cache_dir=str(tmp_path / "cache"))
        assert len(loaded["train"]) == count


def test_what_was_left_out_on_purpose_is_told_without_paths(tmp_path: Path) -> None:
    hub = f"hf://datasets/org/name@{COMMIT}"
    clean = CleanConfig(near_duplicates=0.8, benchmarks=["/home/someone/test.jsonl", hub])
    (tmp_path / "cleaned").mkdir()
    text = (make_run(tmp_path / "cleaned", clean=clean) / "README.md").read_text()
    assert "| near-duplicates from (`clean.near_duplicates`) | 0.8 |" in text
    assert "texts of benchmarks, 13 words" in text and "test.jsonl, hf" in text
    assert "/home" not in text and "clean.languages" not in text
    assert "`clean." not in (make_run(tmp_path) / "README.md").read_text()
