"""What a look at some rows says of a pool; what the ingest makes of it: test_ingest.py."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from instructdiff_ray.config.clean import CleanConfig
from instructdiff_ray.config.data import DataConfig, ModelConfig
from instructdiff_ray.config.run import Config
from instructdiff_ray.config.training import CalibrateConfig
from instructdiff_ray.errors import UserError
from instructdiff_ray.models.model import Model
from instructdiff_ray.pool import preview
from instructdiff_ray.pool.columnar import row_groups
from instructdiff_ray.pool.files import source_files
from instructdiff_ray.pool.preview import SampledPool, preview_pool

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "sleeps"]


def rows(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Samples of very different lengths, the shortest first."""
    draw = random.Random(seed)
    lengths = sorted(draw.randint(1, 40) for _ in range(count))
    return [
        {"prompt": f"{seed} {number}", "response": " ".join(draw.choices(WORDS, k=length))}
        for number, length in enumerate(lengths)
    ]


def write_lines(path: Path, samples: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(sample) + "\n" for sample in samples))


def look(model: Model, path: Path | list[str], **data: object) -> SampledPool:
    paths = path if isinstance(path, list) else str(path)
    config = Config(
        data=DataConfig(path=paths, **data),  # type: ignore[arg-type]
        model=ModelConfig(base=model.path),
        calibrate=CalibrateConfig(max_length=512),
    )
    return preview_pool(config, source_files(config.data), model)


def tokens(pool: SampledPool) -> float:
    return pool.scale * sum(pool.table["tokens"].to_pylist())


def test_of_few_rows_all_is_known(model: Model, tmp_path: Path) -> None:
    samples = rows(50)
    write_lines(tmp_path / "pool.jsonl", samples)
    with (tmp_path / "pool.jsonl").open("a") as file:
        file.write(json.dumps(samples[3]) + "\nno json\n" + json.dumps({"prompt": "x"}) + "\n")
    pool = look(model, tmp_path / "pool.jsonl")
    assert pool.whole and pool.scale == 1
    rejected = {"duplicate": 1, "invalid_json": 1, "unknown_schema": 1}
    assert pool.counts == {"read": 53, "rejected": rejected, "pool": 50, "truncated": 0}
    ids = [*pool.ids()]
    assert len({*ids}) == len(pool) == 50 and ids == sorted(ids)
    kept = look(model, tmp_path / "pool.jsonl", keep_duplicates=True)
    assert len(kept) == 51 and len({*kept.ids()}) == 51


def test_of_many_rows_a_sample_from_all_over_the_files_tells_what_is_in_all(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Sorted by length: whoever looked at the first rows alone would be far off.
    write_lines(tmp_path / "pool.jsonl", rows(3000))
    exact = sum(look_at_all(model, tmp_path / "pool.jsonl", monkeypatch))
    monkeypatch.setattr(preview, "SAMPLED_ROWS", 400)
    monkeypatch.setattr(preview, "BYTES", 120_000)
    monkeypatch.setattr(preview, "BYTES_PER_PIECE", 5_000)
    pool = look(model, tmp_path / "pool.jsonl")
    assert not pool.whole and pool.rows <= 401
    assert pool.counts["read"] == pytest.approx(3000, rel=0.1)
    assert tokens(pool) == pytest.approx(exact, rel=0.1)
    limited = look(model, tmp_path / "pool.jsonl", limit=1000)
    assert limited.counts["read"] == 1000 and not limited.whole


def look_at_all(model: Model, path: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    with monkeypatch.context() as patch:
        patch.setattr(preview, "SAMPLED_ROWS", 10_000)
        pool = look(model, path)
        assert pool.whole
        return pool.table["tokens"].to_pylist()


def test_files_of_all_formats_are_looked_at_in_proportion(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = [rows(count, seed) for seed, count in enumerate((1200, 500, 900, 700))]
    write_lines(tmp_path / "a.jsonl", parts[0])
    (tmp_path / "b.json").write_text(json.dumps(parts[1]))
    table = pa.Table.from_pylist(parts[2])
    pq.write_table(table, tmp_path / "c.parquet", row_group_size=100)
    with gzip.open(tmp_path / "d.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(sample) + "\n" for sample in parts[3])
    exact = sum(look_at_all(model, tmp_path, monkeypatch))
    monkeypatch.setattr(preview, "SAMPLED_ROWS", 500)
    monkeypatch.setattr(preview, "BYTES", 150_000)
    monkeypatch.setattr(preview, "BYTES_PER_PIECE", 2_000)
    pool = look(model, tmp_path)
    assert pool.counts["read"] == pytest.approx(3300, rel=0.05)
    assert tokens(pool) == pytest.approx(exact, rel=0.1)


def test_a_footer_tells_the_rows_of_a_parquet_file(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "pool.parquet"
    pq.write_table(pa.Table.from_pylist(rows(250)), path, row_group_size=100)
    (file,) = source_files(DataConfig(path=str(path)))
    assert [count for _, count in row_groups(file)] == [100, 100, 50]
    # What is damaged or empty among others costs its own rows, as in an ingest.
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1 and no more")
    (tmp_path / "empty.jsonl").touch()
    assert len(look(model, tmp_path)) == 250
    path.unlink()
    with pytest.raises(UserError, match="pool.parquet can't be read"):
        row_groups(file)


def test_a_pool_without_a_valid_row_is_refused_as_by_the_ingest(
    model: Model, tmp_path: Path
) -> None:
    (tmp_path / "pool.jsonl").write_text("no json\n" * 3)
    with pytest.raises(UserError, match=r"no valid row; all were rejected \(invalid_json 3\)"):
        look(model, tmp_path / "pool.jsonl")
    data = DataConfig(path=str(tmp_path / "pool.jsonl"))
    config = Config(data=data, clean=CleanConfig(near_duplicates=0.8))
    with pytest.raises(UserError, match=r"no valid row; all were rejected \(invalid_json 3\)"):
        preview_pool(config, source_files(data), model)
