"""The command line: what a person types, and what they are told."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from transformers import GPT2Config, GPT2LMHeadModel

from instructdiff_ray.commands.settings import compose_settings, typed_config
from instructdiff_ray.config.run import Config
from instructdiff_ray.demo.pool import write_pool
from instructdiff_ray.models.model import Model
from instructdiff_ray.selection.requirements import check_strategy

ROOT = Path(__file__).resolve().parents[1]


def run_job(
    job: str, arguments: list[str], capfd: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch
) -> tuple[int, str, str]:
    """What `python jobs/<job>.py <arguments>` does, in this process; exit status and output."""
    patch.setattr(sys, "argv", [str(ROOT / "jobs" / job), *arguments])
    patch.setattr(sys, "path", [str(ROOT / "jobs"), *sys.path])
    sys.modules.pop("_command", None)
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "jobs" / f"{job}.py"), run_name="__main__")
    out, err = capfd.readouterr()
    return int(ended.value.code or 0), out, err


@pytest.fixture
def pool_file(tmp_path: Path) -> Path:
    write_pool(str(tmp_path / "pool.jsonl"), seed=5, size=120)
    return tmp_path / "pool.jsonl"


@pytest.fixture
def settings(pool_file: Path, tmp_path: Path, model_folder: str) -> list[str]:
    return [
        f"data.path={pool_file}",
        f"model.base={model_folder}",
        "calibrate.epochs=1",
        "calibrate.global_batch_size=4",
        "calibrate.max_length=150",
        f"storage={tmp_path / 'storage'}",
    ]


MISTAKES = {
    "missing path": (["data.path=/no/such.jsonl"], "data.path=/no/such.jsonl does not exist"),
    "no match": (["data.path=/no/*.jsonl"], "matches no file"),
    "unknown format": (["data.path={tmp}/data.txt"], "unknown format .txt"),
    "empty file": (["data.path={tmp}/empty.jsonl"], "holds no row"),
    "no model": (["model.base=null"], "model.base is not set"),
    "no weights": (["model.base={tmp}/bare"], "has no weights"),
    "no such model": (["model.base=./nowhere"], "is no folder"),
    "a URI of the Hub": (["model.base=hf://org/name"], "name a model of the Hub as org/name, with"),
    "beta and gamma": (["select.ratio=0.9"], "select.ratio=0.9 is more than select.reject_ratio"),
    "wrong type": (["select.ratio=tenth"], "select.ratio: Value 'tenth'"),
    "unknown key": (
        ["select.ratoi=0.1"],
        "select.ratoi is not a setting; did you mean select.ratio",
    ),
    "added key": (["+rato=0.1"], "rato is not a setting"),
    "a domain's own": (["domains.law.select.ratio=0.2"], "put a + before it: +domains.law."),
    "unknown in a domain": (
        ["+domains.law.select.ratoi=0.2"],
        "domains.law.select.ratoi is not a setting",
    ),
    "one for all domains": (["+domains.law.select.filter=ppl"], "select.filter is one for all"),
    "unknown strategy": (["strategy=ppl"], "strategy=ppl is not known; use one of instructdiff,"),
    "rounds of a baseline": (["strategy=ifd", "rounds=2"], "rounds=2 makes no sense with"),
    "no small model": (
        ["strategy=superfiltering", "baseline.small_model=./nowhere"],
        "baseline.small_model=./nowhere is no folder",
    ),
    "budget": (["select.budget=words"], "select.budget=words is not known; use samples or tokens"),
    "unknown domain": (
        ["domain=physics"],
        "domain=physics is not known; choose code, demo, general",
    ),
    "unsplittable batch": (["cluster.train.workers=3"], "calibrate.global_batch_size=4"),
    "impossible value": (["calibrate.epochs=0"], "calibrate.epochs=0 must be"),
    "strategy of the demo": (
        ["data.path=demo", "model.base=demo", "strategy=ppl"],
        "strategy=ppl is not known",
    ),
    "format of the demo": (["data.path=demo", "data.format=xml"], "data.format=xml is not known"),
    "unknown option": (["--foo"], "unrecognized arguments: --foo; `instructdiff COMMAND --help`"),
    "option without a value": (["--config-dir"], "--config-dir: expected one argument"),
    "no folder of settings": (["--config-dir=./nowhere"], "--config-dir ./nowhere is no folder"),
    "settings that are there": (
        ["--config-dir={tmp}/mine"],
        "model/local.yaml is the name of a file of settings that is there already",
    ),
    "settings that are no YAML": (["--config-dir={tmp}/broken", "+x=bad"], "while parsing"),
    "half a list": (["data.path=[a,b"], "data.path=[a,b can't be read as a setting"),
    "no choice": (["domain="], "domain= is not known; choose code, demo"),
    "nearly a group": (["modle=local"], "modle is not a setting; did you mean model?"),
    "no list": (
        ["output.formats=trl"],
        "output.formats: Invalid value assigned: str is no list, such as [a,b]",
    ),
    "no storage": (["storage="], "storage is empty"),
    "key in a URI": (["storage=s3://AKIA:geheim@b/x"], "s3://…@b/x: a key in a URI is not taken"),
    "key of the data": (["data.path=s3://AKIA:geheim@b/x"], "s3://…@b/x: a key in a URI"),
    "key of the model": (["model.base=s3://AKIA:geheim@b/x"], "s3://…@b/x: a key in a URI"),
}


@pytest.mark.parametrize("name", list(MISTAKES))
def test_a_mistake_ends_in_one_line_before_anything_starts(
    name: str,
    settings: list[str],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    overrides, expected = MISTAKES[name]
    (tmp_path / "data.txt").write_text("{}")
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "bare").mkdir()
    (tmp_path / "mine/model").mkdir(parents=True)
    (tmp_path / "mine/model/local.yaml").write_text("base: /mine\n")
    (tmp_path / "broken/x").mkdir(parents=True)
    (tmp_path / "broken/x/bad.yaml").write_text("a: [1,\n")
    for file in ("config.json", "tokenizer.json"):
        (tmp_path / "bare" / file).write_text("{}")
    arguments = settings + [override.format(tmp=tmp_path) for override in overrides]
    keys = {argument.split("=")[0]: argument for argument in arguments}
    status, out, err = run_job("run", list(keys.values()), capfd, monkeypatch)
    assert (status, out) == (1, "")
    assert err.startswith("error: ") and err.count("\n") == 1 and "Traceback" not in err
    assert expected in err
    assert not (tmp_path / "storage").exists()


def test_the_demo_is_not_planned_for_it_would_have_to_be_made(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    status, out, err = run_job("plan", [f"storage={tmp_path / 'storage'}"], capfd, monkeypatch)
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("error: the demo makes its own pool and model")
    assert not (tmp_path / "storage").exists()


def test_a_warm_up_share_that_leaves_no_row_ends_in_one_line(
    ray_session: None,
    settings: list[str],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    status, _, err = run_job("run", [*settings, "calibrate.ratio=0.001"], capfd, monkeypatch)
    assert status == 1
    assert err.startswith("error: calibrate.ratio=0.001 of ") and err.count("\n") == 1
    (left,) = (tmp_path / "storage" / "runs").rglob("*.*")
    assert left.name == "progress.json" and json.loads(left.read_text())["state"] == "failed"


def test_stages_run_alone_and_a_sweep_scores_once(
    ray_session: None,
    settings: list[str],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run(job: str, *more: str) -> tuple[int, str, str]:
        return run_job(job, [*more, *settings], capfd, monkeypatch)

    def plan() -> str:
        before = sorted((tmp_path / "storage").rglob("*"))
        status, out, err = run("plan", "plan.price_per_hour=36")
        assert (status, err) == (0, "")
        assert sorted((tmp_path / "storage").rglob("*")) == before
        return out

    assert "in storage  nothing of it" in plan()
    for job, first in (("calibrate", "ingest"), ("score", "calibrate"), ("select", "score")):
        status, _, err = run(job)
        assert (status, err.count("\n")) == (1, 1)
        assert f"run `instructdiff {first}` first" in err
        assert run(first)[0] == 0
        if first == "ingest":
            assert "in storage  the pool\n" in plan()
    out = plan()
    assert "the pool, 1 of 1 calibrated models, base scores, calibrated scores" in out
    assert "work        none" in out
    status, out, _ = run("select", f"run_dir={tmp_path / 'alone'}")
    assert status == 0
    assert "finished scores were reused" in out
    progress = json.loads((tmp_path / "alone/progress.json").read_text())
    assert (progress["state"], progress["error"]) == ("finished", None)
    assert {stage["name"] for stage in progress["stages"]} >= {"select", "write", "report"}
    assert all(stage["ended"] for stage in progress["stages"])

    status, _, err = run("run", "-m", "select.ratio=0.05,0.1,0.2", f"run_dir={tmp_path / 'sweep'}")
    assert (status, err) == (0, "")
    sizes = []
    for point, ratio in enumerate((0.05, 0.1, 0.2)):
        summary = json.loads((tmp_path / f"sweep/{point}/summary.json").read_text())
        assert summary["scoring"]["samples_scored"] == {"base": 0, "calibrated": 0}
        assert f"ratio: {ratio}\n" in (tmp_path / f"sweep/{point}/config.yaml").read_text()
        sizes.append(summary["counts"]["selected"])
    assert sizes == sorted(set(sizes))
    alone, point = (
        pq.read_table(tmp_path / name / "ranking.parquet") for name in ("alone", "sweep/1")
    )
    assert alone.equals(point)
    status, _, err = run("run", "-m", "select.ratio=0.1,0.9", f"run_dir={tmp_path / 'partly'}")
    assert status == 1, "one point of the sweep failed"
    assert err.count("error: ") == 1
    assert (tmp_path / "partly/0/summary.json").exists()
    assert not (tmp_path / "partly/1").exists()


def composed(name: str, *overrides: str) -> Config:
    return typed_config(compose_settings(overrides, config_name=name))


@pytest.mark.parametrize(
    ("domain", "rate", "batch", "epochs", "length", "beta"),
    [  # Table 9 of the paper
        ("math", 5e-5, 256, 3, 2048, 0.1),
        ("general", 2e-5, 64, 10, 2048, 0.1),
        ("medical", 2e-5, 64, 3, 512, 0.1),
        ("code", 1e-5, 256, 5, 4096, 0.2),
    ],
)
def test_a_domain_brings_the_papers_hyper_parameters(
    domain: str, rate: float, batch: int, epochs: int, length: int, beta: float
) -> None:
    config = composed("config", f"domain={domain}")
    tuned = config.calibrate
    assert (tuned.learning_rate, tuned.global_batch_size, tuned.epochs) == (rate, batch, epochs)
    assert (config.domain, tuned.max_length, config.select.ratio) == (domain, length, beta)
    assert (tuned.ratio, config.select.reject_ratio) == (0.1, 0.1)
    assert (tuned.weight_decay, tuned.warmup_steps_ratio, tuned.max_grad_norm) == (0.01, 0.05, 1.0)


def test_every_choice_of_every_group_is_a_valid_configuration() -> None:
    for group in ("model", "template", "cluster", "domain"):
        for file in (ROOT / "conf" / group).glob("*.yaml"):
            check_strategy(composed("config", f"{group}={file.stem}"))
    demo = composed("demo")
    check_strategy(demo)
    assert (demo.data.path, demo.model.base, demo.domain) == ("demo", "demo", "demo")


def test_columns_and_shares_are_given_by_name_on_the_command_line() -> None:
    columns = composed("config", "data.columns={instruction: the q, response: a}").data.columns
    assert columns == {"instruction": "the q", "response": "a"}
    mixed = composed("demo", "select.mixture={math: 0.25, code/py: 0.5}")
    assert mixed.select.mixture == {"math": 0.25, "code/py": 0.5}


def test_help_is_given_without_starting_anything() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "jobs/run.py", "--help"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0
    assert "instructdiff run [SETTING=VALUE" in done.stdout


@pytest.mark.slow
def test_the_selection_of_a_run_is_trained_on_and_another_family_is_warned_about(
    ray_session: None,
    settings: list[str],
    tmp_path: Path,
    model: Model,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    large, words = tmp_path / "large", len(model.vocabulary())
    GPT2LMHeadModel(
        GPT2Config(vocab_size=words, n_embd=16, n_layer=1, n_head=2, n_positions=256)
    ).save_pretrained(large)
    model.load_tokenizer().save_pretrained(large)
    chosen = f"run_dir={tmp_path / 'chosen'}"
    assert run_job("run", [*settings, "strategy=random", chosen], capfd, monkeypatch)[0] == 0
    finetune = [*settings, f"finetune.model={large}", f"finetune.selection={tmp_path / 'chosen'}"]
    status, out, _ = run_job("finetune", finetune, capfd, monkeypatch)
    assert status == 0
    assert "warning: finetune.model (gpt2) is of another family than model.base (qwen2)" in out
    ids = pq.read_table(tmp_path / "chosen/ranking.parquet", filters=[("fate", "=", "selected")])
    assert f"trained on {ids.num_rows} samples: {tmp_path / 'storage'}" in out
    trained = Path(out.split("samples: ")[-1].strip())
    assert json.loads((trained / "config.json").read_text())["model_type"] == "gpt2"
    other = [*finetune, "data.limit=20"]
    status, _, err = run_job("finetune", other, capfd, monkeypatch)
    assert status == 1 and err.count("\n") == 1
