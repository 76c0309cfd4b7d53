"""What tools outside rely on, to the bit: keys, names of files and columns, and who is selected.

The models' scores are replaced by numbers made of each sample's id, so that the selections are the
same on every machine. golden.json is edited by hand, with the reason in the commit, where a
contract is meant to change.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from instructdiff_ray.demo.pool import write_pool
from tests.test_jobs import run_job

GOLDEN = Path(__file__).with_name("golden.json")
ROWS = 1000
# Algorithm 1 to the letter, and its ablations.
PLAIN = {
    "instructdiff": [],
    "token budget": ["select.budget=tokens", "select.ratio=0.2"],
    "middle": ["select.entropy=middle"],
    "highest": ["select.entropy=highest", "select.min_samples=30", "select.max_samples=40"],
    "filtered by PPL": ["select.filter=ppl"],
    "unfiltered": ["select.reject_ratio=0"],
    "without warm-up": ["select.exclude_warmup=true"],
    "own ratios": ["+domains.math.select.ratio=0.3", "+domains.code.select.reject_ratio=0.2"],
    **{
        name: [f"strategy={name}"]
        for name in ("random", "ppl_mid", "entropy_max", "response_length", "instruction_length")
        + ("length_ratio_min", "ifd", "zip", "zip_unique")
    },
}
RUNS = {
    **{name: ["select.guard=none", *options] for name, options in PLAIN.items()},
    "guarded": [],
    "without mismatched": ["select.guard=mismatched"],
    "all guards": ["select.guard=[mismatched,complete,typical]"],
    "guarded ifd": ["strategy=ifd", "select.guard=[typical,mismatched]"],
}


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def key_of(inputs: dict[str, Any]) -> str:
    return sha(json.dumps(inputs, sort_keys=True, ensure_ascii=False).encode())


def manifest_of(folder: Path) -> dict[str, Any]:
    """The only finished artifact's of a kind; its key is the hash of its inputs."""
    (file,) = folder.glob("*/manifest.json")
    manifest = json.loads(file.read_text())
    assert key_of(manifest["inputs"]) == manifest["key"] == file.parent.name
    return manifest


def write_scores(storage: Path) -> None:
    """Pieces of made-up scores for both models, for the responses alone and for their ends, where
    scorers would leave them: under the key of all that determines a score."""
    pool, model = (manifest_of(storage / kind) for kind in ("pool", "models"))
    base, rendering = model["inputs"]["base"], model["inputs"]["rendering"]
    alone = {
        **rendering,
        "form": "response",
        "template": {**rendering["template"], "response_prompt": "### Response:"},
    }
    index = pq.read_table(storage / "pool" / pool["key"] / pool["attempt"] / "index-00000.parquet")
    calibrated = f"{model['key']}/{model['info']['weights']}"
    for name, identity, encoding in (
        ("base", base, rendering),
        ("calibrated", calibrated, rendering),
        ("alone", base, alone),
        ("ending", calibrated, {**rendering, "form": "ending"}),
    ):
        inputs = {"version": 2, "model": identity, "precision": "fp32", "rendering": encoding}
        folder = storage / "pieces" / key_of(inputs)
        folder.mkdir(parents=True)
        pq.write_table(made_up_scores(name, index), folder / "piece-golden.parquet")


def made_up_scores(name: str, index: pa.Table) -> pa.Table:
    ids = index["sample_id"].to_pylist()
    digests = [hashlib.sha256(f"{name} {i}".encode()).digest() for i in ids]
    nll, entropy = (
        pa.array([0.5 + int.from_bytes(d[at : at + 4], "big") / 2**32 for d in digests])
        for at in (0, 4)
    )
    return pa.table(
        {
            "sample_id": ids,
            "response_tokens": index["response_tokens"],
            "nll": nll,
            "entropy": entropy,
            "reason": pa.nulls(len(ids), pa.string()),
            "detail": pa.nulls(len(ids), pa.string()),
        }
    )


def without_machine(inputs: Any, identities: dict[str, str]) -> Any:
    """A manifest's inputs without what depends on the machine: paths, times, and the weights of
    models, whose last bits differ between processors."""
    if isinstance(inputs, dict):
        return {
            name: Path(value).name if name == "path" else without_machine(value, identities)
            for name, value in inputs.items()
            if name != "mtime_ns"
        }
    if isinstance(inputs, list):
        return [without_machine(item, identities) for item in inputs]
    return identities.get(inputs, inputs) if isinstance(inputs, str) else inputs


def outcome(folder: Path) -> dict[str, Any]:
    ranking = pq.read_table(folder / "ranking.parquet")
    summary = json.loads((folder / "summary.json").read_text())
    assert set(summary["scoring"]["samples_scored"].values()) == {0}, "a made-up score was missed"
    fates = zip(ranking["sample_id"].to_pylist(), ranking["fate"].to_pylist(), strict=True)
    return {
        "columns": [f"{field.name}: {field.type}" for field in ranking.schema],
        "counts": summary["counts"],
        "fates": sha("".join(f"{i} {fate}\n" for i, fate in fates).encode()),
        "selected": sha((folder / "selected.jsonl").read_bytes()),
        "rejects": len((folder / "rejects.jsonl").read_text().splitlines()),
        "summary": sorted(summary),
        "keys": sorted(summary["keys"]),
        "files": sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()),
    }


def test_keys_names_and_selections_are_what_they_were(
    ray_session: None,
    tmp_path: Path,
    model_folder: str,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_pool(str(tmp_path / "pool.jsonl"), seed=3, size=ROWS)
    storage = tmp_path / "storage"
    settings = [
        f"data.path={tmp_path / 'pool.jsonl'}",
        "data.domain_column=domain",
        "domain=demo",
        f"model.base={model_folder}",
        "calibrate.epochs=1",
        "calibrate.ratio=0.05",
        "calibrate.max_length=256",
        f"storage={storage}",
    ]

    def run(job: str, *more: str) -> None:
        status, _, err = run_job(job, [*settings, *more], capfd, monkeypatch)
        assert status == 0, err

    run("ingest")
    run("calibrate")
    write_scores(storage)
    run("score", "select.guard=[mismatched,complete,typical]")
    found: dict[str, Any] = {"runs": {}}
    for name, options in RUNS.items():
        # Only the first shows the tokens of its report: a pass each would take minutes.
        run("select" if found["runs"] else "run", *options, f"run_dir={tmp_path / name}")
        found["runs"][name] = outcome(tmp_path / name)
    pool, model = (manifest_of(storage / kind) for kind in ("pool", "models"))
    identities = {
        model["inputs"]["base"]: "<base>",
        f"{model['key']}/{model['info']['weights']}": "<calibrated>",
    }
    scores = [json.loads(f.read_text()) for f in sorted(storage.glob("scores/*/manifest.json"))]
    assert all(key_of(manifest["inputs"]) == manifest["key"] for manifest in scores)
    found["inputs"] = without_machine(
        {
            "pool": pool["inputs"],
            "models": model["inputs"],
            "scores": sorted((m["inputs"] for m in scores), key=json.dumps),
        },
        identities,
    )
    found["inputs"]["scores"].sort(key=json.dumps)
    found["info"] = {"pool": sorted(pool["info"]), "digest": pool["info"]["digest"]}
    found["kinds"] = sorted(path.name for path in storage.iterdir() if path.name != "runs")
    assert found == json.loads(GOLDEN.read_text())
