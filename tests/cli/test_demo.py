from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from expunge.cli.app import app
from expunge.runs.job import run_job
from expunge.runs.recipe import read_recipe


def test_the_demo_shows_its_run(files: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def run_demo(out: Path, **options: Any) -> Any:
        asked.update(options)
        return run_job(read_recipe(None, files.fields(), options["overrides"]), out / "run")

    monkeypatch.setattr("expunge.runs.demo.run_demo", run_demo)
    given = ["demo", "--out", str(tmp_path), "--people", "30", "--seed", "4", "--set", "epochs=1", "--json"]
    done = CliRunner().invoke(app, given)
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["report_html"] == str(tmp_path / "run" / "report.html")
    assert (asked["people"], asked["seed"], asked["method"], asked["oracles"]) == (30, 4, "npo", 2)
    assert CliRunner().invoke(app, [*given, "--require", "removed"]).exit_code == 3


def test_too_few_people_is_said_before_work(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["demo", "--out", str(tmp_path / "d"), "--people", "3"])
    assert done.exit_code == 2
    assert "people: is 3" in done.stderr
    assert not (tmp_path / "d").exists()
