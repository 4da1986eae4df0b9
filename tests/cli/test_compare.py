from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from expunge.audits.base import Estimate, Finding, Scalar
from expunge.cli.app import app
from expunge.reports.report import MethodSummary, ModelSummary, RequestSummary, RunReport


def report(value: float, fingerprint: str = "f") -> RunReport:
    scalars = (
        Scalar("forget_probability", "Probability, forget", "probability", "high"),
        Scalar("extra", "Something else", "nats"),
    )
    estimates = {
        "unlearned": {"forget_probability": Estimate(value, value - 0.1, value + 0.1, 10), "extra": Estimate(None)}
    }
    return RunReport(
        title="t",
        created="2025-01-01",
        request=RequestSummary("people", "examples", 10, fingerprint=fingerprint),
        removal_level="approximate",
        models={"unlearned": ModelSummary(), "original": ModelSummary(sha256="a")},
        verdict={"result": "not removed", "sentence": "", "retained": {"result": "kept"}},
        findings=[Finding("probability", scalars=scalars, estimates=estimates)],
        method=MethodSummary("npo"),
        cost={"forgetting": {"seconds": 61.0}},
    )


@pytest.fixture
def runs(tmp_path: Path) -> list[str]:
    for name, value in (("a", 0.25), ("b", 0.5)):
        (tmp_path / name).mkdir()
        report(value).write_json(tmp_path / name / "report.json")
    return [str(tmp_path / "a"), str(tmp_path / "b" / "report.json")]


def test_runs_stand_side_by_side(runs: list[str]) -> None:
    done = CliRunner().invoke(app, ["compare", *runs])
    assert done.exit_code == 0, done.stderr
    for part in ("not removed", "kept", "npo", "0.250 [0.150, 0.350]", "0.500 [0.400, 0.600]", "1 min 1 s"):
        assert part in done.stdout
    assert "Something else" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert done.stderr == ""


def test_all_numbers_and_no_data(runs: list[str]) -> None:
    done = CliRunner().invoke(app, ["compare", "--all", *runs])
    assert "Something else" in done.stdout
    assert "no data" in done.stdout


def test_json_and_page(runs: list[str], tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["compare", *runs, "--json", "--html", str(tmp_path / "c.html")])
    found = json.loads(done.stdout)
    assert [run["name"] for run in found["runs"]] == ["a", "b"]
    assert found["runs"][1]["probability.forget_probability"]["value"] == 0.5
    assert found["runs"][0]["result"] == "not removed"
    page = (tmp_path / "c.html").read_text()
    assert "0.250" in page
    assert "<h1>2 models side by side</h1>" in page
    assert "://" not in page
    assert CliRunner().invoke(app, ["compare", runs[0], "--html", str(tmp_path / "one.html")]).exit_code == 0
    assert "<h1>1 model side by side</h1>" in (tmp_path / "one.html").read_text()


def test_more_than_three_runs_still_fit(runs: list[str]) -> None:
    done = CliRunner().invoke(app, ["compare", *runs, *runs, runs[0]])
    assert done.exit_code == 0
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_runs_that_cannot_be_compared_are_said(runs: list[str], tmp_path: Path) -> None:
    other = replace(report(0.1, "other"), hardware={"cores": 99}, models={"original": ModelSummary(sha256="b")})
    (tmp_path / "c").mkdir()
    other.write_json(tmp_path / "c" / "report.json")
    done = CliRunner().invoke(app, ["compare", *runs, str(tmp_path / "c")])
    err = " ".join(done.stderr.split())
    assert "different requests" in err
    assert "different machines" in err
    assert "different models" in err


def test_every_folder_without_a_report_is_named(runs: list[str], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.json").write_text("{")
    done = CliRunner().invoke(app, ["compare", *runs, str(tmp_path / "empty"), str(tmp_path / "bad.json")])
    assert done.exit_code == 2
    err = " ".join(done.stderr.split())
    assert "empty: holds no report" in err
    assert "bad.json: is not JSON" in err
