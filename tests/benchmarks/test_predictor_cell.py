from __future__ import annotations

import json
from pathlib import Path

import pytest

from expunge.benchmarks import predictor_cell
from expunge.benchmarks.predictor_cell import Cell, ModelJob, Place, run_cell, train_model
from expunge.tasks.predictor import Predictor


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An original and a retrained model of 200 digits."""
    folder = tmp_path_factory.mktemp("models")
    jobs = {
        "original": ModelJob(folder / "original", Place("digits", None, 200, "class", 0), True, 1),
        "retrained": ModelJob(folder / "retrained", Place("digits", None, 200, "class", 0), False, 2),
    }
    for job in jobs.values():
        assert train_model(job)["cpu_seconds"] > 0
    return {name: str(job.folder / "model") for name, job in jobs.items()}


def test_a_finished_model_is_not_trained_again(models: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(models["retrained"]).parent
    before = json.loads((folder / "seconds.json").read_text())
    monkeypatch.setattr(predictor_cell, "unlearn", None)
    job = ModelJob(folder, Place("digits", None, 200, "class", 0), False, 2)
    assert train_model(job)["cpu_seconds"] == before["cpu_seconds"]
    assert not (folder / "checkpoints").exists()


def cell(models: dict[str, str], folder: Path, method: str, **settings: object) -> Cell:
    start = models["retrained" if method.startswith("retrain") else "original"]
    return Cell(folder, Place("digits", None, 200, "class", 0), method, start, models["retrained"], settings)


def test_the_original_knows_and_the_retrained_model_does_not(models: dict[str, str], tmp_path: Path) -> None:
    original = run_cell(cell(models, tmp_path / "a", "original"))
    oracle = run_cell(cell(models, tmp_path / "b", "retrain"))
    assert original["ua"] < 5 < 95 < oracle["ua"]
    assert original["fa"] > 30
    assert oracle["fa"] == 0
    assert "cpu_seconds" not in oracle


def test_a_cell_forgets_and_is_read_the_second_time(
    models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = cell(models, tmp_path / "c", "random_label", learning_rate=3e-3, epochs=20, batch_size=8)
    found = run_cell(asked)
    assert found["ua"] > 50
    assert found["cpu_seconds"] > 0
    assert found["removal_level"] == "approximate"
    monkeypatch.setattr(predictor_cell, "unlearn", None)
    monkeypatch.setattr(Predictor, "load", None)
    assert run_cell(asked) == found


def test_what_fails_says_so(models: dict[str, str], tmp_path: Path) -> None:
    found = run_cell(cell(models, tmp_path / "d", "ssd", alpha=1e6))
    assert "alpha" in found["failed"]
    assert "ua" not in found
    assert not (tmp_path / "d").exists()
