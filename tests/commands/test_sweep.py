"""A sweep's points, one job each; on a job server: test_submit.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from instructdiff_ray.commands import sweep
from instructdiff_ray.errors import UserError


def test_every_combination_of_the_values_is_a_point() -> None:
    settings = ["select.ratio=0.05,0.1", "data.path=[a,b]", "strategy=ifd,random", "storage=/out"]
    points = sweep.split_points([*settings, "+domains.law.select.ratio=0.3", "run_dir=s3://b/runs"])
    assert [point.folder for point in points] == [f"s3://b/runs/{number}" for number in range(4)]
    common = {"data.path": "[a,b]", "storage": "/out", "+domains.law.select.ratio": "0.3"}
    assert [point.chosen for point in points] == [
        {"select.ratio": ratio, "strategy": strategy, **common}
        for ratio in ("0.05", "0.1")
        for strategy in ("ifd", "random")
    ]
    assert len({point.job for point in points}) == 4
    mixtures = "select.mixture={math: 0.3},{math: 0.5, code: 0.5}"
    points = sweep.split_points([mixtures, "storage=/out"])
    assert [point.chosen["select.mixture"] for point in points] == [
        "{math:0.3}",
        "{math:0.5,code:0.5}",
    ]
    (alone,) = sweep.split_points(["storage=/out"])
    assert alone.folder.startswith("/out/runs/") and alone.folder.endswith("/0")


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (["select.ratio=0.1,0.2"], "storage= must be one absolute path or URI"),
        (["storage=outputs"], "storage=outputs must be one absolute path"),
        (["storage=/a,/b"], "storage= must be one absolute path"),
        (["storage=/a", "run_dir=runs"], "run_dir=runs must be one absolute path"),
        (["storage=/a", "no setting"], "no setting"),
        (["storage=/a", "select.ratio=interval(0,1)"], "select.ratio: only lists of values"),
    ],
)
def test_what_is_no_sweep_is_refused_before_a_job_is_submitted(
    settings: list[str], line: str
) -> None:
    with pytest.raises(UserError) as refused:
        sweep.split_points(settings)
    assert line in str(refused.value) and "\n" not in str(refused.value)


class UnansweredServer:
    """A job server behind a gateway that answers 502, as Ray's client tells it."""

    def submit_job(self, **job: object) -> None:
        raise RuntimeError("Request failed with status code 502: bad gateway.")

    def get_job_status(self, job: str) -> None:
        raise RuntimeError("Request failed with status code 502: bad gateway.")


def test_a_job_server_that_does_not_answer_is_told_in_a_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    (point,) = sweep.split_points(["storage=/out"])
    jobs = sweep.Sweep(UnansweredServer(), "python", {})
    assert jobs._status(point) is None
    assert "does not answer (Request failed with status code 502" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"can't be submitted .*502") as refused:
        jobs.run([point], 1)
    assert "\n" not in str(refused.value)


def test_what_an_earlier_sweep_has_left_is_not_the_outcome_of_a_failed_point(
    tmp_path: Path,
) -> None:
    (point,) = sweep.split_points([f"storage={tmp_path}", f"run_dir={tmp_path}"])
    Path(point.folder).mkdir()
    (Path(point.folder) / "summary.json").write_text("no matter")
    assert "no matter" not in sweep.table([point], {point.job})


def test_a_job_runs_the_checkout_or_else_what_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(__file__).resolve().parents[2]
    assert sweep._entry() == (["jobs/run.py"], {"working_dir": str(root)})
    monkeypatch.setattr(sweep, "__file__", str(tmp_path / "instructdiff_ray/commands/sweep.py"))
    assert sweep._entry() == (["-m", "instructdiff_ray", "run"], {})
