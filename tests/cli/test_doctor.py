from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from expunge.cli import doctor
from expunge.cli.app import app


def test_this_machine_is_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EXPUNGE_DATA", raising=False)
    done = CliRunner().invoke(app, ["doctor", "--json"])
    found = json.loads(done.stdout)
    assert done.exit_code == 0
    assert found["ready"]
    names = {check["name"] for check in found["checks"]}
    assert {"python", "torch", "gpu", "memory", "disk here", "EXPUNGE_DATA"} <= names
    assert all(check["fix"] for check in found["checks"] if check["status"] == "problem")


def test_the_table_fits_80_columns() -> None:
    done = CliRunner().invoke(app, ["doctor"])
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_a_data_folder_that_is_not_there_is_a_problem(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EXPUNGE_DATA", str(tmp_path / "no"))
    done = CliRunner().invoke(app, ["doctor"])
    assert done.exit_code == 1
    assert "EXPUNGE_DATA" in done.stderr
    monkeypatch.setenv("EXPUNGE_DATA", str(tmp_path))
    assert doctor.data()[0].status == "note"
    (tmp_path / "tofu").mkdir()
    assert doctor.data()[0].status == "ok"


def test_versions_are_compared_with_the_tested_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("expunge.runs.facts.versions", lambda: {"torch": "1.0+cpu", "numpy": ""})
    found = {check.name: check for check in doctor.packages()}
    assert found["torch"].status == "note"
    assert "pip install 'torch==" in found["torch"].fix
    assert found["numpy"].status == "problem"
