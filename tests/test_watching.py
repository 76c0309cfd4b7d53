"""What `deploy/` has for Prometheus and Grafana, against the code, and against a real run."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from ray._private.ray_constants import PROMETHEUS_SERVICE_DISCOVERY_FILE
from ray.dashboard.modules.reporter.reporter_agent import METRICS_GAUGES

from instructdiff_ray import telemetry
from instructdiff_ray.telemetry import JOB, RunCounter, RunGauge
from tests.heads import ROOT, free_ports, running_head

DEFINED = {
    f"ray_{metric.name}": {JOB, *metric.labels}
    for metric in vars(telemetry).values()
    if isinstance(metric, RunCounter | RunGauge)
}
RAYS_OWN = {f"ray_{name}" for name in METRICS_GAUGES}
METRIC = re.compile(r"\bray_\w+")


def dashboard() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((ROOT / "deploy/grafana-dashboard.json").read_text())
    return content


def queries() -> dict[str, str]:
    """By the title of their panel."""
    return {
        panel["title"]: target["expr"]
        for panel in dashboard()["panels"]
        for target in panel["targets"]
    }


def test_the_dashboard_shows_all_that_the_code_counts_and_else_what_ray_exports() -> None:
    named = {name for query in queries().values() for name in METRIC.findall(query)}
    assert named >= DEFINED.keys()
    assert named - DEFINED.keys() <= RAYS_OWN
    assert any("gpus_utilization" in name for name in named)


@pytest.mark.parametrize("title", queries())
def test_a_panel_asks_for_labels_that_its_metric_has(title: str) -> None:
    query = queries()[title]
    labels = {name for group in re.findall(r"by \(([^)]*)\)", query) for name in group.split(", ")}
    labels |= set(re.findall(r"(\w+)=~?\"", query))
    known = set().union(*(DEFINED.get(name, set()) for name in METRIC.findall(query)))
    assert labels <= known | {"SessionName", "instance", "GpuIndex"}, query


def test_panels_have_places_and_numbers_of_their_own() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = Counter(
        (place["x"] + x, place["y"] + y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["w"])
        for y in range(place["h"])
    )
    assert max(cells.values()) == 1 and max(x for x, _ in cells) == 23


def test_names_are_those_that_prometheus_expects() -> None:
    for name, metric in vars(telemetry).items():
        if isinstance(metric, RunCounter):
            assert metric.name.startswith("instructdiff_") and metric.name.endswith("_total"), name
        elif isinstance(metric, RunGauge):
            assert metric.name.endswith(("_ratio", "_info")), name


def test_prometheus_finds_what_ray_writes() -> None:
    config = yaml.safe_load((ROOT / "deploy/prometheus.yml").read_text())
    jobs = {job["job_name"]: job for job in config["scrape_configs"]}
    (files,) = jobs["ray"]["file_sd_configs"]
    assert files["files"] == [f"/tmp/ray/{PROMETHEUS_SERVICE_DISCOVERY_FILE}"]
    (target,) = jobs["kuberay"]["static_configs"][0]["targets"]
    assert target.endswith("-head-svc:8080")


@contextmanager
def prometheus(targets: Path, folder: Path) -> Iterator[str]:
    """The address of a Prometheus with the configuration of `deploy/`, but that it asks each second
    and reads this file of targets."""
    (port,) = free_ports(1)
    config = yaml.safe_load((ROOT / "deploy/prometheus.yml").read_text())
    config["global"]["scrape_interval"] = "1s"
    (job,) = (job for job in config["scrape_configs"] if job["job_name"] == "ray")
    job["file_sd_configs"][0] |= {"files": [str(targets)], "refresh_interval": "1s"}
    config["scrape_configs"] = [job]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    command = ["prometheus", f"--config.file={folder / 'prometheus.yml'}"]
    command += [f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address=127.0.0.1:{port}"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        address = f"http://127.0.0.1:{port}"
        while process.poll() is None:
            try:
                with urllib.request.urlopen(f"{address}/-/ready", timeout=10):
                    break
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        assert process.poll() is None, (folder / "log").read_text()
        yield address
    finally:
        process.terminate()
        process.wait()


def ask(address: str, path: str, **parameters: Any) -> list[dict[str, Any]]:
    url = f"{address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
    with urllib.request.urlopen(url, timeout=30) as answer:
        result: list[dict[str, Any]] = json.load(answer)["data"]["result"]
    return result


def total(address: str, name: str, by: str) -> dict[str, float]:
    """The last value of each of these counters, summed over processes, by a label."""
    rows = ask(address, "query", query=f"sum by ({by}) (last_over_time(ray_{name}[10m]))")
    return {row["metric"].get(by, ""): float(row["value"][1]) for row in rows}


@pytest.fixture(scope="module")
def watched_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict, float]]:
    """The demo, submitted to a head that a Prometheus watches: its address, the run's summary, and
    when it began."""
    if not shutil.which("prometheus"):
        pytest.skip("there is no `prometheus` on the path (Debian has a package of this name)")
    folder, began = tmp_path_factory.mktemp("watched"), time.time()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_metrics_report_interval_ms", "1000")
        with running_head(["--num-cpus=4"]) as head:
            targets = head.folder / "ray" / PROMETHEUS_SERVICE_DISCOVERY_FILE
            with prometheus(targets, folder) as address:
                run = folder / "run"
                storage = f"storage={folder / 'storage'}"
                job = head.submit("jobs/run.py", storage, f"run_dir={run}")
                assert job.returncode == 0, job.stdout
                summary = json.loads((run / "summary.json").read_text())
                while (
                    total(address, "instructdiff_stage_items_total", "stage").get("report") is None
                ):
                    time.sleep(1)  # the driver's last report is scraped within a second
                yield address, summary, began


@pytest.mark.slow
def test_the_sums_of_a_submitted_run_are_those_of_its_summary(
    watched_run: tuple[str, dict, float],
) -> None:
    address, summary, _ = watched_run
    scoring, seconds = summary["scoring"], summary["seconds"]
    samples = total(address, "instructdiff_scored_samples_total", "model")
    assert samples == scoring["samples_scored"]
    tokens = total(address, "instructdiff_scored_tokens_total", "model")
    assert sum(tokens.values()) == scoring["tokens"] and tokens["base"] == tokens["calibrated"]
    rejected = total(address, "instructdiff_rejected_samples_total", "reason")
    assert rejected == summary["counts"]["rejected"] and rejected
    spent = total(address, "instructdiff_scorer_seconds_total", "state")
    share = spent["waiting"] / (spent["waiting"] + spent["busy"])
    assert share == pytest.approx(scoring["shares"]["waited"])
    stages = total(address, "instructdiff_stage_seconds_total", "stage")
    # The summary is written before its own stage ends.
    assert stages.pop("report") >= seconds.pop("report")
    assert stages == pytest.approx(seconds)
    items = total(address, "instructdiff_stage_items_total", "stage")
    assert items["ingest"] == summary["counts"]["read"]
    assert items["write"] == summary["counts"]["selected"]
    loads = total(address, "instructdiff_model_load_seconds_total", "path")
    assert loads.keys() >= {summary["base_model"], summary["calibrated_model"]}


@pytest.mark.slow
def test_rays_own_metrics_name_what_a_person_knows(
    watched_run: tuple[str, dict, float],
) -> None:
    address, summary, _ = watched_run
    datasets = {name.split("_")[0] for name in total(address, "data_output_rows", "dataset")}
    assert datasets == {"ingest", "training set", "score base, calibrated", "read pool"}
    trainings = total(address, "train_controller_state", "ray_train_run_name")
    assert trainings.keys() == {f"calibrate-{summary['keys']['calibrated_model']}"}


@pytest.mark.slow
@pytest.mark.parametrize("title", queries())
def test_every_panel_has_data_of_that_run(title: str, watched_run: tuple[str, dict, float]) -> None:
    if title.startswith("GPU") and not torch.cuda.is_available():
        pytest.skip("this machine has no GPU")
    address, _, began = watched_run
    query = queries()[title]
    for variable, value in (("rate_interval", "30s"), ("range", "1h")):
        query = query.replace(f"$__{variable}", value)
    for variable in ("SessionName", "JobId"):
        query = query.replace(f"${variable}", ".*")
    assert "$" not in query
    rows = ask(address, "query_range", query=query, start=began, end=time.time(), step=1)
    values = [float(value) for row in rows for _, value in row["values"]]
    assert any(map(math.isfinite, values)), query
    if title not in ("Begun again", "Scorers waiting"):
        assert max(filter(math.isfinite, values)) > 0, query
