"""The package as it is installed: built to a wheel, and used in a folder that has nothing of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pip has put the package; what it needs is where Python runs."""
    wheels, target = tmp_path_factory.mktemp("wheels"), tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    offline = ["--no-deps", "--no-index"]
    build = ["wheel", *offline, "--no-build-isolation", "--wheel-dir", str(wheels), str(ROOT)]
    subprocess.run([*pip, *build], check=True, capture_output=True)
    (wheel,) = wheels.iterdir()
    install = ["install", *offline, "--target", str(target), str(wheel)]
    subprocess.run([*pip, *install], check=True, capture_output=True)
    return target


def instructdiff(installed: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(installed / "bin/instructdiff"), *words],
        env={**os.environ, "PYTHONPATH": str(installed)},
        cwd=folder,
        capture_output=True,
        text=True,
    )


def test_the_wheel_has_the_command_with_its_settings(installed: Path, tmp_path: Path) -> None:
    help = instructdiff(installed, tmp_path, "run", "--help")
    assert (help.returncode, help.stderr) == (0, "")
    assert "  model=local " in help.stdout and "qwen2.5-7b" in help.stdout
    (tmp_path / "conf/model").mkdir(parents=True)
    (tmp_path / "conf/model/mine.yaml").write_text("base: /models/mine\n")
    words = ["--config-dir", "conf", "model=mine", "domain=code", "--cfg", "job"]
    settings = yaml.safe_load(instructdiff(installed, tmp_path, "run", *words).stdout)
    assert settings["model"]["base"] == "/models/mine"
    assert settings["select"]["ratio"] == 0.2, "of conf/domain/code.yaml"


@pytest.mark.slow
def test_the_demo_runs_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    done = instructdiff(installed, tmp_path, "run", "run_dir=demo")
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"demo", "outputs"}
    counts = json.loads((tmp_path / "demo/summary.json").read_text())["counts"]
    assert counts["selected"] == len((tmp_path / "demo/selected.jsonl").read_text().splitlines())
