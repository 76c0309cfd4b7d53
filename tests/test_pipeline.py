"""The whole method on a small pool, with real Ray, Ray Train and a real tiny model."""

from __future__ import annotations

import io
import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from huggingface_hub import DatasetCard

from instructdiff_ray.config.data import DataConfig, ModelConfig
from instructdiff_ray.config.output import FORMATS, OutputConfig
from instructdiff_ray.config.run import Config
from instructdiff_ray.config.selection import SelectConfig
from instructdiff_ray.config.training import CalibrateConfig
from instructdiff_ray.context import RunContext, prepare
from instructdiff_ray.demo.pool import write_pool
from instructdiff_ray.errors import UserError
from instructdiff_ray.forecast.cost import MEASURED, known_rates
from instructdiff_ray.forecast.work import CALIBRATE, SCORE, Plan, plan_run
from instructdiff_ray.models.encoding import EncoderSpec
from instructdiff_ray.models.template import Encoded, chat_messages
from instructdiff_ray.pipeline import (
    calibrate_on,
    calibrate_repeats,
    draw_warmup,
    ingest_pool,
    last_round,
    run_rounds,
    score_pool,
    score_shown,
    select_samples,
    training_ids,
)
from instructdiff_ray.pool.schemas import parse_row
from instructdiff_ray.progress import Progress
from instructdiff_ray.results.console import show_result
from instructdiff_ray.results.examples import choose_examples
from instructdiff_ray.results.outputs import write_round
from instructdiff_ray.sample import Part
from instructdiff_ray.scoring.token_scores import ShownSample
from instructdiff_ray.selection.ranking import selected_ids
from tests.engine.test_metrics import plain_score
from tests.pools import samples
from tests.selection.test_select import plain_fates

ROWS = 260
pytestmark = pytest.mark.usefixtures("ray_session")


@dataclass(frozen=True)
class FinishedRun:
    """What `instructdiff run` leaves: its context, the last summary, and what it printed; and what
    `instructdiff plan` had said of it before."""

    context: RunContext
    summary: dict[str, Any]
    output: str
    plan: Plan

    @property
    def config(self) -> Config:
        return self.context.config

    @property
    def folder(self) -> str:
        return self.context.folder.path


def context_of(config: Config) -> RunContext:
    return prepare(config, Progress(io.StringIO()))


def run_method(config: Config) -> FinishedRun:
    """What `instructdiff run` does."""
    output = io.StringIO()
    context = prepare(config, Progress(output))
    plan = plan_run(context)
    pool = ingest_pool(context)
    for result in run_rounds(context, pool):
        summary = write_round(context, result)
    show_result(context, summary)
    return FinishedRun(context, summary, output.getvalue(), plan)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, model_folder: str) -> Config:
    folder = tmp_path_factory.mktemp("run")
    write_pool(str(folder / "pool.jsonl"), seed=3, size=ROWS)
    return Config(
        data=DataConfig(path=str(folder / "pool.jsonl"), domain_column="domain"),
        domain="demo",
        model=ModelConfig(base=model_folder),
        calibrate=CalibrateConfig(
            ratio=0.1, epochs=2, learning_rate=1e-3, global_batch_size=8, max_length=200
        ),
        output=OutputConfig([*FORMATS]),
        rounds=2,
        storage=str(folder / "storage"),
        run_dir=str(folder / "out"),
    )


@pytest.fixture(scope="module")
def run(config: Config, ray_session: None) -> FinishedRun:
    return run_method(config)


def selected(ranking: str | Path) -> list[str]:
    rows = pq.read_table(ranking).to_pylist()
    return [row["sample_id"] for row in rows if row["fate"] == "selected"]


def read_json(folder: str, name: str) -> dict:
    return json.loads(Path(folder, name).read_text())


def test_the_run_folder_holds_all_that_tools_outside_rely_on(run: FinishedRun) -> None:
    out = run.folder
    ranking = pq.read_table(f"{out}/ranking.parquet")
    assert ranking.column_names == [
        "sample_id",
        "domain",
        "response_tokens",
        "base_nll",
        "base_entropy",
        "calibrated_nll",
        "calibrated_entropy",
        "delta_nll",
        "delta_entropy",
        "fate",
        "excluded_by",
        "surprise",
    ]
    summary = read_json(out, "summary.json")
    counts = summary["counts"]
    rejects = Path(out, "rejects.jsonl").read_text().splitlines()
    assert counts["read"] == len(Path(run.config.data.path).read_bytes().splitlines())
    assert counts["read"] == counts["pool"] + sum(counts["rejected"].values())
    assert len(rejects) == sum(counts["rejected"].values())
    assert {"file", "line", "reason"} <= json.loads(rejects[0]).keys()
    assert ranking.num_rows == counts["pool"]
    assert counts["warmup"] == math.floor(counts["pool"] / 10)
    assert counts["in_band"] == counts["pool"] - counts["below_band"] - counts["above_band"]
    selected = Path(out, "selected.jsonl").read_text().splitlines()
    assert len(selected) == counts["selected"] == ranking["fate"].to_pylist().count("selected") > 0
    assert summary["scoring"]["samples_scored"] == {
        "base": counts["pool"],  # once, though there were two rounds
        "calibrated": 2 * counts["pool"],
    }
    assert summary["scoring"]["precision"] == "fp32"
    assert summary["scoring"]["tokens"] > 0 and summary["scoring"]["tokens_per_second"] > 0
    shares = summary["scoring"]["shares"]
    assert shares.keys() == {"padding", "waited", "matrix_product_rate"}
    assert 0 <= shares["padding"] < 1 and 0 <= shares["waited"] < 1
    # Of what the machine reached when the scorer was loaded; it may be less busy by now.
    assert shares["matrix_product_rate"] > 0
    stages = {"ingest", "calibrate", "score", "select", "write", "token view", "report"}
    assert stages == summary["seconds"].keys()
    assert {"pool", "calibrated_model", "base_scores", "calibrated_scores"} == set(summary["keys"])
    assert Path(summary["calibrated_model"], "model.safetensors").exists()
    assert "<html" in Path(out, "report/index.html").read_text()
    assert "learning_rate: 0.001" in Path(out, "config.yaml").read_text()
    assert "selected" in run.output


def test_each_folder_is_a_data_set_with_the_selection_in_every_format(run: FinishedRun) -> None:
    for folder in (Path(run.folder), Path(run.folder, "round-1"), Path(run.folder, "round-2")):
        text = (folder / "README.md").read_text()
        configs = {c["config_name"]: c["data_files"] for c in DatasetCard(text).data.configs}
        assert list(configs) == ["selected", "messages", "rejects"]
        assert all((folder / file).stat().st_size for file in configs.values())
        paths = (run.folder, run.config.data.path, run.config.model.base, run.config.storage)
        assert not [path for path in paths if str(path) in text]
        source = (folder / "selected.jsonl").read_text().splitlines()
        messages = (folder / "formats/messages.jsonl").read_text().splitlines()
        assert [json.loads(line)["messages"] for line in messages] == [
            chat_messages(parse_row(line)[1]) for line in source
        ]
    assert f"| selected | {run.summary['counts']['selected']} |" in text


def test_each_round_has_its_folder_and_the_last_shows_at_the_top(run: FinishedRun) -> None:
    out = Path(run.folder)
    for name in ("selected.jsonl", "ranking.parquet", "summary.json", "report/index.html"):
        assert (out / "round-2" / name).read_bytes() == (out / name).read_bytes()
        assert (out / "round-1" / name).exists()
    first, second = (read_json(str(out / f"round-{k}"), "summary.json") for k in (1, 2))
    assert first["calibrated_model"] != second["calibrated_model"]


def test_the_plan_said_what_the_run_then_cost(run: FinishedRun) -> None:
    cost, counts = run.summary["cost"], run.summary["counts"]
    score = [work for work in run.plan.work if work.stage == SCORE]
    first, second = (work for work in run.plan.work if work.stage == CALIBRATE)
    assert len(run.plan.pool) == counts["pool"] and run.plan.pool.counts["read"] == counts["read"]
    assert sum(size.tokens for size in run.plan.sizes.values()) == counts["tokens"]
    assert sum(work.tokens for work in score) == cost["score"]["tokens"]
    assert first.samples == counts["warmup"] and second.samples == pytest.approx(24, abs=4)
    # Which samples the second round trains on nobody knew.
    tokens = first.tokens + second.tokens
    assert tokens == pytest.approx(cost["calibrate"]["tokens"], rel=0.3)
    assert cost["machine_hours"] > 0 and cost["price"] is None
    # What was measured is what the next plan goes by.
    after = plan_run(run.context)
    assert not after.work and after.exact
    assert {*after.in_storage} == {
        "the pool",
        "base scores",
        *(f"1 of 1 calibrated models of round {k}" for k in (1, 2)),
        *(f"calibrated scores of round {k}" for k in (1, 2)),
    }
    rates = known_rates(run.context, after)
    assert {stage: rate.source for stage, rate in rates.items()} == dict.fromkeys(rates, MEASURED)
    assert {*rates} == {CALIBRATE, SCORE}


def test_the_second_round_calibrates_on_the_first_rounds_selection(run: FinishedRun) -> None:
    out = Path(run.folder)
    first = selected(out / "round-1/ranking.parquet")
    model = Path(read_json(str(out), "summary.json")["calibrated_model"])
    manifest = read_json(str(model.parents[1]), "manifest.json")
    assert manifest["info"]["samples"] == len(first)
    pool = ingest_pool(run.context, build=False)
    assert training_ids(run.context, pool) == [first]


def test_the_selection_follows_from_the_ranking_and_holds_the_source_rows(run: FinishedRun) -> None:
    out = run.folder
    ranking = pq.read_table(f"{out}/ranking.parquet").to_pylist()
    rows = [(r["sample_id"], r["domain"], r["delta_nll"], r["delta_entropy"]) for r in ranking]
    limits = run.summary["guards"]["typical"]["limits"]
    atypical = {
        r["sample_id"] for r in ranking if r["surprise"] > (limits[r["domain"]] or math.inf)
    }
    assert {r["sample_id"]: r["fate"] for r in ranking} == plain_fates(rows, 0.1, 0.1, atypical)
    for r in ranking:
        assert r["delta_nll"] == r["calibrated_nll"] - r["base_nll"]
        assert r["delta_entropy"] == r["base_entropy"] - r["calibrated_entropy"]
    source = Path(run.config.data.path).read_bytes().splitlines()
    selected = Path(out, "selected.jsonl").read_bytes().splitlines()
    places = [source.index(line) for line in selected]
    assert places == sorted(places)


def test_calibration_teaches_the_format(run: FinishedRun) -> None:
    ranking = pq.read_table(f"{run.folder}/round-1/ranking.parquet")
    delta_nll = ranking["delta_nll"].to_numpy()
    assert np.mean(delta_nll) < -0.1
    assert np.mean(delta_nll < 0) > 0.75


def check_token_scores(result: FinishedRun) -> None:
    """The mean over the tokens of each sample that the report shows is its score."""
    ranking = {
        r["sample_id"]: r for r in pq.read_table(f"{result.folder}/ranking.parquet").to_pylist()
    }
    pool = ingest_pool(result.context, build=False)
    last = last_round(result.context, pool, build=False)
    chosen = {i for shown in choose_examples(last.ranking).values() for i in shown}
    ids = sorted(ranking)
    samples = [ShownSample(ids[i], ranking[ids[i]]["domain"], []) for i in chosen]
    tokens = score_shown(result.context, last, samples, build=False)
    assert tokens.keys() == {sample.sample_id for sample in samples}
    for name, scores in tokens.items():
        assert len(scores.turn) == ranking[name]["response_tokens"]
        for measure, values in scores.measures.items():
            assert np.mean(values) == pytest.approx(ranking[name][measure], abs=1e-4)


def test_the_report_colours_the_tokens_that_the_scores_are_means_of(run: FinishedRun) -> None:
    check_token_scores(run)
    page = Path(run.folder, "report/index.html").read_text()
    assert "Tokens that changed most" in page and 'title="ΔH ' in page


def test_the_same_again_runs_no_model_and_changes_nothing(run: FinishedRun, config: Config) -> None:
    names = ("selected.jsonl", "ranking.parquet", "rejects.jsonl", "config.yaml")
    before = {name: Path(run.folder, name).read_bytes() for name in names}
    again = run_method(config)
    assert {name: Path(run.folder, name).read_bytes() for name in names} == before
    assert again.summary["scoring"]["samples_scored"] == {"base": 0, "calibrated": 0}
    assert again.summary["keys"] == run.summary["keys"]
    models_run = {"ingest", "calibrate", "score", "token view"}
    assert not models_run & again.summary["seconds"].keys()


def test_another_ratio_only_ranks_again(run: FinishedRun, config: Config, tmp_path: Path) -> None:
    once = replace(config, rounds=1)
    wider = replace(once, select=SelectConfig(ratio=0.2), run_dir=str(tmp_path / "wider"))
    result = run_method(wider)
    assert result.summary["scoring"]["samples_scored"] == {"base": 0, "calibrated": 0}
    wide = pq.read_table(tmp_path / "wider/ranking.parquet")
    narrow = pq.read_table(f"{run.folder}/round-1/ranking.parquet")
    assert set(selected(f"{run.folder}/round-1/ranking.parquet")) < set(
        selected(tmp_path / "wider/ranking.parquet")
    )
    assert wide["delta_nll"].equals(narrow["delta_nll"])


def test_a_mixture_shares_out_the_selection(
    run: FinishedRun, config: Config, tmp_path: Path
) -> None:
    domains = {"code": {"select": {"ratio": 0.9}}}  # which is not used
    mixture = SelectConfig(ratio=0.2, mixture={"math": 0.5, "code": 0.25})
    mixed = replace(config, rounds=1, select=mixture, domains=domains, run_dir=str(tmp_path))
    context = prepare(mixed, Progress(lines := io.StringIO()))
    ingested = ingest_pool(context, build=False)
    summary = write_round(context, last_round(context, ingested, build=False), build=False)
    pool, shown = len(ingested), summary["mixture"]["domains"]
    assert summary["counts"]["selected"] == pool // 5 == sum(d["came"] for d in shown.values())
    rows = pq.read_table(tmp_path / "ranking.parquet").to_pylist()
    for name, domain in shown.items():
        band = [r for r in rows if r["domain"] == name and r["fate"] in ("selected", "not_top")]
        lowest = sorted(band, key=lambda r: (r["delta_entropy"], r["sample_id"]))
        chosen = {r["sample_id"] for r in band if r["fate"] == "selected"}
        assert chosen == {r["sample_id"] for r in lowest[: domain["wanted"]]}
        assert (domain["came"], domain["available"]) == (domain["wanted"], len(band))
    assert abs(shown["math"]["came"] - pool / 10) < 1 and abs(shown["code"]["came"] - pool / 20) < 1
    assert "select.ratio of code is not used" in lines.getvalue()
    for file in ("README.md", "report/index.html"):
        assert "wanted" in (tmp_path / file).read_text()
    physics = replace(mixture, mixture={"physics": 0.5})
    with pytest.raises(UserError, match=r"select\.mixture names physics"):
        ingest_pool(context_of(replace(config, select=physics)), build=False)


def test_zip_takes_the_mixture_of_its_own_order(
    run: FinishedRun, config: Config, tmp_path: Path
) -> None:
    select = SelectConfig(ratio=0.1, mixture={"math": 0.8, "code": 0.2})
    zipped = replace(config, rounds=1, strategy="zip_unique", select=select, run_dir=str(tmp_path))
    shown = run_method(zipped).summary["mixture"]["domains"]
    assert [shown[name]["came"] for name in shown] == [shown[name]["wanted"] for name in shown]
    assert shown["math"]["came"] > 3 * shown["code"]["came"] > 0
    assert {shown[name]["came"] for name in shown.keys() - {"math", "code"}} == {0}


def test_ranking_again_without_models_says_how_to_get_the_token_view(
    run: FinishedRun, config: Config, tmp_path: Path
) -> None:
    select = SelectConfig(ratio=0.3)
    context = context_of(replace(config, rounds=1, select=select, run_dir=str(tmp_path)))
    pool = ingest_pool(context, build=False)
    summary = write_round(context, last_round(context, pool, build=False), build=False)
    assert "token view" not in summary["seconds"]
    page = (tmp_path / "report/index.html").read_text()
    assert "no model was at hand" in page and 'title="ΔH ' not in page


def test_a_pool_that_grew_scores_only_what_is_new_under_the_base(
    run: FinishedRun, config: Config, tmp_path: Path
) -> None:
    more = (
        '{"instruction": "Name a colour.", "response": "A colour is blue.", "domain": "general"}\n'
    )
    (tmp_path / "more.jsonl").write_text(more * 2)
    data = replace(config.data, path=[config.data.path, str(tmp_path / "more.jsonl")])
    # α keeps the warm-up subset to the same few samples only by luck: any calibrated model will do.
    grown = replace(config, data=data, rounds=1, run_dir=str(tmp_path / "grown"))
    result = run_method(grown)
    assert result.summary["counts"]["pool"] == run.summary["counts"]["pool"] + 1
    assert result.summary["counts"]["rejected"]["duplicate"] == (
        run.summary["counts"]["rejected"]["duplicate"] + 1
    )
    assert result.summary["scoring"]["samples_scored"]["base"] == 1


def test_a_lost_piece_of_a_scores_artifact_is_noticed_and_rebuilt(
    run: FinishedRun, config: Config, tmp_path: Path
) -> None:
    scores = Path(config.storage, "scores", run.summary["keys"]["calibrated_scores"])
    for file in scores.rglob("scores-*.parquet"):
        file.write_bytes(file.read_bytes()[:-10])
    again = run_method(replace(config, run_dir=str(tmp_path / "again")))
    # The pieces are whole: it is gathered again, without a forward pass.
    assert again.summary["scoring"]["samples_scored"] == {"base": 0, "calibrated": 0}
    assert (tmp_path / "again/selected.jsonl").read_bytes() == (
        Path(run.folder) / "selected.jsonl"
    ).read_bytes()


def test_a_baseline_costs_the_passes_that_its_formula_needs_and_no_more(
    run: FinishedRun, config: Config, tmp_path: Path
) -> None:
    ifd, drawn, longest = (
        run_method(replace(config, rounds=1, strategy=name, run_dir=str(tmp_path / name)))
        for name in ("ifd", "random", "response_length")
    )
    pool = ifd.summary["counts"]["pool"]
    # The base model's were there from the rounds before.
    assert ifd.summary["scoring"]["samples_scored"] == {"base": 0, "calibrated": 0, "alone": pool}
    for run in (drawn, longest):
        assert run.summary["scoring"]["samples_scored"] == {"base": 0, "calibrated": 0}
        assert run.summary["counts"]["selected"] == sum(
            max(1, domain["pool"] // 10) for domain in run.summary["domains"].values()
        )
    assert run_method(ifd.config).summary["scoring"]["samples_scored"]["base"] == 0
    table = pq.read_table(tmp_path / "ifd/ranking.parquet")
    assert table["value"].null_count == table["base_nll"].null_count == 0
    assert table["calibrated_nll"].null_count == table["delta_nll"].null_count == table.num_rows
    assert "Baseline: ifd" in Path(tmp_path, "ifd/report/index.html").read_text()
    lines = Path(tmp_path, "ifd/selected.jsonl").read_text().splitlines()
    assert len(lines) == ifd.summary["counts"]["selected"]


@pytest.mark.slow
def test_each_domain_has_its_own_model_and_ratios_where_asked(
    config: Config, tmp_path: Path
) -> None:
    files = {}
    for name, answer in (("math", "It is {n}."), ("code", "print({n})")):
        rows = [{"question": f"Give {n}.", "answer": answer.format(n=n)} for n in range(24)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        files[name] = str(tmp_path / f"{name}.jsonl")
    domains = {
        "math": {"calibrate": {"ratio": 0.5, "epochs": 3}, "select": {"ratio": 0.5}},
        "code": {"select": {"reject_ratio": 0.0}},
    }
    per_domain = replace(
        config,
        data=DataConfig(path=files),
        domains=domains,
        calibrate=replace(config.calibrate, per_domain=True, ratio=0.2, epochs=1),
        rounds=1,
        storage=str(tmp_path / "storage"),
        run_dir=str(tmp_path / "own"),
    )
    result = run_method(per_domain)
    assert result.summary["counts"]["warmup"] == 12 + 4
    table = result.summary["domains"]
    assert {n: (d["pool"], d["selected"]) for n, d in table.items()} == {
        "math": (24, 12),
        "code": (24, 2),
    }
    paths = result.summary["calibrated_model"]
    assert paths.keys() == {"code", "math"} and paths["code"] != paths["math"]
    assert result.summary["scoring"]["samples_scored"] == {"base": 48, "calibrated": 48}
    ranking = pq.read_table(tmp_path / "own/ranking.parquet").to_pylist()
    assert {r["fate"] for r in ranking if r["domain"] == "code"} == {"selected", "not_top"}
    check_token_scores(result)
    # Each sample's scores are those of its own domain's model.
    pool = ingest_pool(result.context, build=False)
    warmup = draw_warmup(result.context, pool)
    models = calibrate_on(result.context, pool, warmup, build=False)
    assert isinstance(models, dict)
    rows = {row["sample_id"]: row for row in ranking}
    encoder = EncoderSpec.of(result.config, result.context.base).encoder()
    for row in samples(pool)[:3]:
        (encoded,) = encoder.encode([[Part(**p) for p in row["parts"]]])
        assert isinstance(encoded, Encoded)
        loaded = models[row["domain"]].load("fp32")
        nll, _ = plain_score(loaded, encoded.input_ids, encoded.response)
        assert rows[row["sample_id"]]["calibrated_nll"] == pytest.approx(nll, abs=1e-4)


def test_a_domains_own_share_of_the_warm_up_is_drawn_apart(
    run: FinishedRun, config: Config
) -> None:
    domains = {"math": {"calibrate": {"ratio": 0.5}}}
    mixed = context_of(replace(config, domains=domains, rounds=1))
    pool = ingest_pool(mixed, build=False)
    drawn, sizes = set(draw_warmup(mixed, pool)), pool.domains()
    of_math = set(pool.by_domain([*pool.ids()])["math"])
    assert len(drawn & of_math) == sizes["math"] // 2
    assert len(drawn - of_math) == (len(pool) - sizes["math"]) // 10
    excluded = replace(mixed.config, select=SelectConfig(exclude_warmup=True), domains={})
    result = run_method(replace(excluded, run_dir=f"{config.run_dir}-excluded"))
    ranking = pq.read_table(f"{result.folder}/ranking.parquet").to_pylist()
    fates = {row["sample_id"]: row["fate"] for row in ranking}
    warmup = draw_warmup(result.context, pool)
    assert {fates[i] for i in warmup} <= {"excluded", "below_band", "above_band"}
    assert result.summary["counts"]["excluded"] == list(fates.values()).count("excluded") > 0


def test_a_calibration_has_no_more_samples_than_its_bound(run: FinishedRun, config: Config) -> None:
    domains = {"math": {"calibrate": {"ratio": 0.5, "max_samples": 3}}}
    bounded = replace(config, calibrate=replace(config.calibrate, max_samples=5), domains=domains)
    whole = context_of(replace(bounded, domains={}))
    pool = ingest_pool(whole, build=False)
    unbounded = draw_warmup(run.context, pool)
    drawn = draw_warmup(whole, pool)
    assert len(drawn) == 5 and set(drawn) < set(unbounded)
    # Where a domain has a model of its own, its own bound counts.
    apart = replace(bounded.calibrate, per_domain=True, ratio=0.5)
    drawn = draw_warmup(context_of(replace(bounded, calibrate=apart)), pool)
    ids = {name: {*of_name} for name, of_name in pool.by_domain([*pool.ids()]).items()}
    assert len(set(drawn) & ids.pop("math")) == 3
    assert all(len(set(drawn) & other) == min(5, len(other) // 2) for other in ids.values())


def test_a_stage_without_its_inputs_says_which_job_makes_them(
    config: Config, tmp_path: Path, model_folder: str
) -> None:
    fresh = context_of(replace(config, storage=str(tmp_path)))
    with pytest.raises(UserError, match=r"run `instructdiff ingest` first"):
        ingest_pool(fresh, build=False)


def test_too_small_a_warm_up_share_is_refused_in_one_line(run: FinishedRun, config: Config) -> None:
    tiny = replace(config, calibrate=replace(config.calibrate, ratio=1e-6))
    with pytest.raises(UserError, match=r"calibrate\.ratio=1e-06 of \d+ samples leaves no"):
        run_method(tiny)


def test_zip_goes_the_whole_way_and_its_page_shows_what_was_picked(
    run: FinishedRun, config: Config, tmp_path: Path
) -> None:
    once = replace(config, rounds=1, strategy="zip_unique", run_dir=str(tmp_path / "zip"))
    result = run_method(once)
    assert result.summary["counts"]["selected"] == sum(
        max(1, domain["pool"] // 10) for domain in result.summary["domains"].values()
    )
    table = pq.read_table(tmp_path / "zip/ranking.parquet")
    assert set(table["fate"].to_pylist()) == {"selected", "not_top"}
    assert "Baseline: zip_unique" in Path(tmp_path, "zip/report/index.html").read_text()


def test_a_selection_of_nothing_is_told_and_not_written(
    run: FinishedRun, config: Config, tmp_path: Path
) -> None:
    select = SelectConfig(exclude_warmup=True)
    whole = replace(config.calibrate, ratio=1.0)
    pool = ingest_pool(run.context, build=False)
    nothing = replace(config, rounds=1, calibrate=whole, select=select, run_dir=str(tmp_path))
    warmup = draw_warmup(run.context, pool)
    calibrated = calibrate_on(run.context, pool, warmup, build=False)
    scores = score_pool(run.context, pool, [calibrated], build=False)
    with pytest.raises(UserError, match="strategy=instructdiff selects nothing"):
        select_samples(context_of(nothing), pool, scores)


@pytest.mark.slow
def test_more_repeats_cost_what_is_new_and_rank_by_the_mean(
    run: FinishedRun, config: Config, tmp_path: Path
) -> None:
    def repeated(repeats: int, name: str) -> FinishedRun:
        calibrate = replace(config.calibrate, repeats=repeats)
        folder = str(tmp_path / name)
        return run_method(replace(config, calibrate=calibrate, rounds=1, run_dir=folder))

    first = read_json(f"{run.folder}/round-1", "summary.json")
    assert "stability" not in first and "calibrated_models" not in first
    two, count = repeated(2, "two"), first["counts"]["pool"]
    assert two.summary["scoring"]["samples_scored"] == {
        "base": 0,
        "calibrated": 0,  # the first repeat is the run with one
        "calibrated-1": count,
    }
    assert two.summary["calibrated_model"] == first["calibrated_model"]
    assert two.summary["calibrated_models"][0] == first["calibrated_model"]
    assert first["keys"].items() <= two.summary["keys"].items()
    assert two.summary["keys"].keys() - first["keys"].keys() == {
        "calibrated-1_scores",
        "calibrated-1_model",
    }
    three = repeated(3, "three")
    scored = three.summary["scoring"]["samples_scored"]
    assert scored.pop("calibrated-2") == count and not any(scored.values())
    stability = three.summary["stability"]
    assert stability["repeats"] == 3 and 0 < stability["overlap"] <= 1
    assert "stability   two single runs share" in three.output
    assert "<h2>Stability</h2>" in Path(three.folder, "report/index.html").read_text()
    table = pq.read_table(f"{three.folder}/ranking.parquet")
    assert table.column_names[-2:] == ["selection_probability", "delta_entropy_std"]
    for delta, scores in (("delta_nll", "nll"), ("delta_entropy", "entropy")):
        signed = 1 if scores == "nll" else -1
        change = table[f"calibrated_{scores}"].to_numpy() - table[f"base_{scores}"].to_numpy()
        assert np.array_equal(table[delta].to_numpy(), signed * change)
    # One stage at a time finds the same.
    pool = ingest_pool(three.context, build=False)
    samples = training_ids(three.context, pool)
    assert len({tuple(ids) for ids in samples}) == 3
    calibrated = calibrate_repeats(three.context, pool, samples, build=False)
    scores = score_pool(three.context, pool, calibrated, build=False)
    ranking = select_samples(three.context, pool, scores)
    assert selected_ids(ranking) == selected(f"{three.folder}/ranking.parquet")
