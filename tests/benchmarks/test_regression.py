from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from expunge.benchmarks import predictor_data
from expunge.benchmarks.base import read_options
from expunge.benchmarks.predictor_data import REGRESSION, make_request, read_data
from expunge.benchmarks.predictor_measures import kept_test, measure_regressor
from expunge.benchmarks.regression import Regression, RegressionOptions, distance
from expunge.errors import BadInput
from expunge.runs.progress import Progress


@pytest.fixture
def shells(tmp_path: Path) -> Path:
    """Abalone as it is published, made up: more rings, larger shells."""
    folder = tmp_path / "data" / "abalone"
    folder.mkdir(parents=True)
    lines = []
    for i in range(300):
        rings, size = 1 + i % 20, (1 + i % 20) / 20 + 0.001 * (i % 7)
        cells = ["MFI"[i % 3], *(f"{size * k + 0.0001 * i:.5f}" for k in range(1, 8)), str(rings)]
        lines.append(",".join(cells))
    (folder / "abalone.csv").write_text("\n".join(lines) + "\n")
    return folder.parent


def test_a_table_from_options_to_files(shells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("expunge.runs.engine.run_all", lambda call, given, **_: (call(*g) for g in given))
    short = replace(REGRESSION["abalone"], training={**REGRESSION["abalone"].training, "epochs": 8, "batch_size": 32})
    monkeypatch.setitem(predictor_data.REGRESSION, "abalone", short)  # type: ignore[arg-type]
    read_data.cache_clear()
    given = {"dataset": ["abalone"], "methods": ["gaussian_finetune,finetune"], "seeds": ["0"], "trials": 2,
             "out": tmp_path / "out", "data": str(shells)}  # fmt: skip
    result = Regression().run(read_options(RegressionOptions, given), Progress())
    rows = {str(row["method"]): row for row in result.rows("abalone", "range")}
    assert set(rows) == {"retrain", "retrain, other seed", "original", "gaussian_finetune", "finetune"}
    numbers = {r["method"]: r for r in result.found["abalone"].records}
    assert numbers["retrain"]["w1"] == 0
    assert numbers["retrain, other seed"]["w1"] > 0
    assert numbers["retrain"]["mae_forgotten"] > numbers["original"]["mae_forgotten"]
    assert "W1 to retrained" in result.to_markdown()
    read_data.cache_clear()


def test_distances_are_zero_to_itself_only(shells: Path) -> None:
    read_data.cache_clear()
    train, test = read_data("abalone", str(shells), None)
    request = make_request("abalone", "range", train, test, 0)
    task = REGRESSION["abalone"].start(train)
    other = task.fresh(3)
    same = measure_regressor(task, task, request, test, 0)
    assert (same["w1"], same["difference"], same["w1_retain"]) == (0, 0, 0)
    found = measure_regressor(task, other, request, test, 0)
    assert 0 < found["w1"] <= found["difference"] + 1e-9
    errors = task.observe(task.encode(kept_test(request, test))).absolute_error
    assert found["mae_retain"] == pytest.approx(errors.mean())
    assert 0 <= found["mia"] <= 100
    read_data.cache_clear()


def test_settings_are_chosen_by_both_sides() -> None:
    oracle = {"w1": 0.0, "mae_retain": 2.0}
    assert distance({"w1": 0.5, "mae_retain": 1.0}, oracle) == 1.5
    assert distance(oracle, oracle) == 0


def test_classifiers_are_not_offered(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="not one of this benchmark"):
        Regression().run(RegressionOptions(dataset=("digits",), out=tmp_path), Progress())
    assert set(predictor_data.REGRESSION) == set(RegressionOptions().dataset)
