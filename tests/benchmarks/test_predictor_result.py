from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from expunge.audits.base import Estimate
from expunge.benchmarks.classification import COLUMNS, NOTES, compare
from expunge.benchmarks.predictor_result import PredictorResult
from expunge.benchmarks.predictor_tables import Found


def record(method: str, seed: int, ua: float, **more: Any) -> dict[str, Any]:
    return {"dataset": "digits", "scenario": "random", "method": method, "seed": seed, "trial": None,
            "ua": ua, "ra": 100.0, "ta": 70.0, "mia": 40.0, **more}  # fmt: skip


def made() -> PredictorResult:
    records = [
        record("retrain", 0, 20.0), record("retrain", 1, 30.0),
        record("retrain, other seed", 0, 24.0), record("retrain, other seed", 1, 30.0),
        record("ssd", 0, 28.0, cpu_seconds=1.0, seconds=2.0), record("ssd", 1, 22.0, cpu_seconds=1.0, seconds=4.0),
        {"dataset": "digits", "scenario": "random", "method": "worn", "seed": 0, "failed": "broke"},
        record("worn", 1, 34.0, cpu_seconds=2.0, seconds=2.0),
    ]  # fmt: skip
    tried = [{"scenario": "random", "method": "ssd", "trial": 0}]
    found = Found(
        records, tried, {"random": {"ssd": {"alpha": 2.0}, "worn": {}}}, {"random": {"unsir": "serves classes"}},
        {"random": {0: 4.0, 1: 2.0}},
    )  # fmt: skip
    return PredictorResult("Table", {"digits": found}, COLUMNS, compare, NOTES, {"common": {"epochs": 5}})


def value(cell: Any) -> float:
    assert isinstance(cell, Estimate)
    assert cell.value is not None
    return cell.value


def test_gaps_are_to_the_oracle_of_the_seed() -> None:
    rows = {str(row["method"]): row for row in made().rows("digits", "random")}
    assert list(rows)[:2] == ["retrain", "retrain, other seed"]
    assert value(rows["ssd"]["gap"]) == (8 / 4 + 8 / 4) / 2
    assert value(rows["ssd"]["gap_of_means"]) == 0  # 25 and 25: the signs cancel
    assert value(rows["retrain, other seed"]["gap"]) == 0.5
    assert rows["retrain"]["gap"] == ""
    assert value(rows["ssd"]["of_retraining"]) == (1 / 4 + 1 / 2) / 2
    assert rows["original" if "original" in rows else "retrain"]["seconds"] == ""


def test_a_failure_is_in_the_table() -> None:
    result = made()
    row = next(r for r in result.rows("digits", "random") if r["method"] == "worn")
    assert row["note"] == "failed at 1 of 2 seeds: broke"
    assert value(row["gap"]) == 1.0
    said = result.to_markdown()
    assert "failed at 1 of 2 seeds: broke" in said
    assert "Not run: unsir, which serves classes." in said
    assert "ssd alpha=2.0" in said
    assert "FA" not in said.partition("UA, RA")[0]


def test_everything_is_written(tmp_path: Path) -> None:
    result = made()
    result.write(tmp_path)
    stored = json.loads((tmp_path / "results.json").read_text())
    assert len(stored["sets"]["digits"]["records"]) == 8
    assert (tmp_path / "table.csv").read_text().startswith("method,gap,gap_low")
    assert "<table" in (tmp_path / "table.html").read_text()
    assert (tmp_path / "table.md").read_text().startswith("## Table: digits")
