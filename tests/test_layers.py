"""The rooms of the library stand on each other: nothing imports upward or in a circle."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "instructdiff_ray"
# From the ground up; each imports itself and what stands before it.
ROOMS = [
    "errors",
    "progress",
    "telemetry",
    "sample",
    "config",
    "resources",
    "autoscaler",
    "storage",
    "models",
    "pool",
    "engine",
    "training",
    "scoring",
    "selection",
    "context",
    "pipeline",
    "forecast",
    "results",
    "sharing",
    "evaluation",
    "demo",
    "commands",
    "api",
    "__main__",
]
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.name != "__init__.py"
}


def room(module: str) -> int:
    return ROOMS.index(module.split(".")[1])


def imports(path: Path) -> set[str]:
    """The library's modules that a file imports anywhere, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names & MODULES.keys()


@pytest.mark.parametrize("module", MODULES)
def test_no_import_goes_upward(module: str) -> None:
    upward = {name for name in imports(MODULES[module]) if room(name) > room(module)}
    assert not upward


def test_no_import_goes_in_a_circle() -> None:
    graph = {module: imports(path) for module, path in MODULES.items()}
    TopologicalSorter(graph).prepare()  # raises CycleError


def test_packages_import_nothing_of_their_own_so_that_workers_stay_light() -> None:
    inits = sorted({*PACKAGE.rglob("__init__.py")} - {PACKAGE / "__init__.py"})
    assert {path.parent.name for path in inits} >= {"engine", "scoring", "selection"}
    for path in inits:
        body = ast.parse(path.read_text()).body
        assert all(isinstance(node, ast.Expr) for node in body), path


def loaded_by(modules: list[str]) -> set[str]:
    """What a fresh process has loaded after it imported these."""
    code = f"import sys, importlib\nfor m in {modules!r}: importlib.import_module(m)\n"
    code += "print(*sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=PACKAGE.parent,
    )
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("name", "strangers"),
    [
        ("engine", {"ray"}),
        ("selection", {"ray", "torch", "transformers"}),
        ("context", {"ray", "torch", "matplotlib"}),
        ("pipeline", {"transformers.trainer", "matplotlib"}),
        ("results.console", {"matplotlib"}),
    ],
)
def test_a_room_does_without_the_libraries_that_it_has_no_use_for(
    name: str, strangers: set[str]
) -> None:
    prefix = f"{PACKAGE.name}.{name}"
    modules = [m for m in MODULES if m == prefix or m.startswith(f"{prefix}.")]
    assert modules
    assert not loaded_by(modules) & strangers
