"""What `clean` leaves out of a pool, row by row, and what of it is in the pool's key."""

from __future__ import annotations

import io
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from instructdiff_ray.config.clean import CleanConfig
from instructdiff_ray.config.data import DataConfig, ModelConfig
from instructdiff_ray.config.run import Config
from instructdiff_ray.config.training import CalibrateConfig
from instructdiff_ray.context import check_settings, prepare
from instructdiff_ray.errors import UserError
from instructdiff_ray.models.encoding import EncoderSpec
from instructdiff_ray.models.model import Model
from instructdiff_ray.pool.cleaning import RowFilters, key_inputs
from instructdiff_ray.pool.files import source_files
from instructdiff_ray.pool.ingest import empty_pool, parse_rows
from instructdiff_ray.pool.pool import Pool
from instructdiff_ray.pool.preview import preview_pool
from instructdiff_ray.pool.rejects import check_rejects
from instructdiff_ray.progress import Progress
from instructdiff_ray.storage.filesystem import Folder
from tests.pool.test_language import TEXTS

LEAKED = "How far does the snail climb if it slips back two feet in each of five nights?"
ROWS = [
    {"question": "How long is the river?", "answer": TEXTS["en"]},
    {"question": "What is 7 * 6?", "answer": "42"},
    {"question": "Say it in German.", "answer": TEXTS["de"]},
    {"question": f"Think. {LEAKED}", "answer": "It climbs fifteen feet and needs a rest then."},
    {"question": "Repeat it.", "answer": " ".join(["the river rises in the hills"] * 20)},
]
REASONS = [None, "short_response", "language", "contaminated", "long_response"]


@pytest.fixture
def clean(tmp_path: Path) -> CleanConfig:
    benchmark = tmp_path / "benchmark.txt"
    benchmark.write_text(f"{LEAKED}\n")
    return CleanConfig(
        benchmarks=[str(benchmark)],
        languages=["en"],
        min_response_tokens=5,
        max_response_tokens=60,
    )


def parse(rows: list[dict[str, Any]], clean: CleanConfig, model: Model) -> list[dict[str, Any]]:
    raw = [
        {"file": "a.jsonl", "domain": None, "line": line, "reason": None, "detail": None}
        | {"text": json.dumps(row)}
        for line, row in enumerate(rows, 1)
    ]
    encoding = EncoderSpec.of(Config(calibrate=CalibrateConfig(max_length=512)), model)
    return parse_rows(raw, DataConfig(), "general", encoding, RowFilters.of(clean))


def test_each_filter_names_its_reason_and_leaves_the_other_rows_alone(
    clean: CleanConfig, model: Model
) -> None:
    bad = {"question": "No answer"}
    parsed = parse([*ROWS, bad], clean, model)
    assert [row.get("reason") for row in parsed] == [*REASONS, "unknown_schema"]
    details = [row.get("detail") for row in parsed]
    assert "less than clean.min_response_tokens=5" in details[1]
    assert details[2] == "the response is in de"
    assert f"words of {clean.benchmarks[0]} line 1: how far does the snail" in details[3]
    assert "more than clean.max_response_tokens=60" in details[4]
    everything = parse([*ROWS, bad], CleanConfig(), model)
    assert [row.get("reason") for row in everything] == [None] * 5 + ["unknown_schema"]
    # What stays is the same sample, under the id by which its scores are found.
    assert parsed[0] == everything[0] and "sample_id" not in parsed[1]


def test_a_plan_sees_near_duplicates_among_the_rows_that_it_looks_at(
    model: Model, tmp_path: Path
) -> None:
    path, text = tmp_path / "pool.jsonl", " ".join(f"word{n}" for n in range(40))
    rows = [{"question": "Say it.", "answer": f"{text} {end}"} for end in ("twice", "thrice", "")]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in [*rows, *ROWS, ROWS[0]]))
    config = Config(data=DataConfig(path=str(path)), calibrate=CalibrateConfig(max_length=512))
    for similarity, near in ((None, {}), (0.8, {"near_duplicate": 2})):
        cleaned = replace(config, clean=CleanConfig(near_duplicates=similarity))
        pool = preview_pool(cleaned, source_files(cleaned.data), model)
        assert pool.counts["rejected"] == {"duplicate": 1} | near
        assert pool.counts["read"] == len(pool) + sum(pool.counts["rejected"].values())


def test_a_plan_looks_at_rows_through_the_same_filters(
    clean: CleanConfig, model: Model, tmp_path: Path
) -> None:
    path = tmp_path / "pool.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
    config = Config(
        data=DataConfig(path=str(path)),
        clean=clean,
        model=ModelConfig(base=model.path),
        calibrate=CalibrateConfig(max_length=512),
        storage=str(tmp_path / "storage"),
    )
    context = prepare(config, Progress(io.StringIO()))
    pool = preview_pool(context.config, context.files, context.base)
    assert len(pool) == 1
    assert pool.counts["rejected"] == dict.fromkeys(sorted(filter(None, REASONS)), 1)


def test_only_what_is_on_is_in_the_key(clean: CleanConfig, tmp_path: Path) -> None:
    assert key_inputs(CleanConfig()) == key_inputs(CleanConfig(ngram=8)) == {}
    assert key_inputs(CleanConfig(benchmarks=None, languages="")) == {}
    assert key_inputs(CleanConfig(languages="en")) == key_inputs(CleanConfig(languages=["en"]))
    variants = [
        clean,
        replace(clean, near_duplicates=0.8),
        replace(clean, near_duplicates=0.9),
        replace(clean, ngram=8),
        replace(clean, benchmarks=[]),
        replace(clean, languages=[]),
        replace(clean, languages=["en", "de"]),
        replace(clean, min_response_tokens=None),
        replace(clean, max_response_tokens=61),
    ]
    keys = [json.dumps(key_inputs(variant)) for variant in variants]
    assert len({*keys}) == len(variants)
    turned = replace(clean, languages=["de", "en"])
    assert json.dumps(key_inputs(turned)) == keys[6]
    moved = tmp_path / "moved.txt"
    moved.write_bytes(Path(clean.benchmarks[0]).read_bytes())
    assert json.dumps(key_inputs(replace(clean, benchmarks=[str(moved)]))) == keys[0]
    moved.write_text("Another text, which has more than seven words, and other ones.\n")
    assert json.dumps(key_inputs(replace(clean, benchmarks=[str(moved)]))) not in keys


def test_mistakes_are_told_before_anything_is_read(clean: CleanConfig) -> None:
    with pytest.raises(UserError, match=r"^clean.languages: xx is not known"):
        check_settings(Config(clean=replace(clean, languages=["xx"])))
    with pytest.raises(UserError, match=r"^clean.benchmarks=/nowhere/x.jsonl does not exist$"):
        prepare(Config(clean=CleanConfig(benchmarks=["/nowhere/x.jsonl"])), Progress(io.StringIO()))
    with pytest.raises(UserError, match="keep_duplicates=true and clean.near_duplicates"):
        Config(clean=CleanConfig(near_duplicates=0.8), data=DataConfig(keep_duplicates=True))


def test_what_is_left_out_is_no_reason_to_stop_but_an_empty_pool_is() -> None:
    counts = {"read": 10, "rejected": {"language": 8, "duplicate": 1}, "pool": 1}
    pool = Pool(Folder("/nowhere"), "key", "digest", [], 1, False, counts)
    check_rejects(pool, 0.0)
    with pytest.raises(UserError, match=r"1 of 10 rows were rejected \(not_finite 1\)"):
        check_rejects(pool, 0.0, Counter(not_finite=1))
    assert "see clean" in empty_pool(["a.jsonl"], {"language": 9, "too_long": 1})
    assert "see data.columns" in empty_pool(["a.jsonl"], {"language": 1, "too_long": 9})
