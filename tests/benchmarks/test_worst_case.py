from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from expunge.audits.classification.average_gap import average_gap
from expunge.benchmarks import worst_case
from expunge.benchmarks.base import read_options
from expunge.benchmarks.predictor_data import CLASSIFICATION
from expunge.benchmarks.predictor_tables import Found
from expunge.benchmarks.worst_case import WorstCaseBench, WorstCaseOptions
from expunge.benchmarks.worst_case_sets import SetsPlan
from expunge.errors import BadInput
from expunge.runs.progress import Progress


def run(out: Path, **given: Any) -> Any:
    chosen = {"dataset": ["digits"], "sets": ["random,worst_case"], "methods": ["finetune"], "seeds": ["0,1"],
              "size": 120, "trials": 1, "out": out, "overrides": ["epochs=1"],
              "select": ["iterations=2", "unlearn_epochs=1"], **given}  # fmt: skip
    return WorstCaseBench().run(read_options(WorstCaseOptions, chosen), Progress())


def test_a_table_from_options_to_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = replace(CLASSIFICATION["digits"], training={**CLASSIFICATION["digits"].training, "epochs": 4})
    monkeypatch.setitem(CLASSIFICATION, "digits", short)  # type: ignore[attr-defined]
    monkeypatch.setattr("expunge.runs.engine.run_all", lambda call, given, **_: (call(*g) for g in given))
    result = run(tmp_path)
    rows, columns = result.gaps("digits")
    by_name = {str(row["method"]): row for row in rows}
    assert set(by_name) == {"retrain, other seed", "original", "finetune"}
    cells = {(r["scenario"], r["seed"], r["method"]): r for r in result.found["digits"].records}
    change = [
        average_gap(cells["worst_case", s, "finetune"], cells["worst_case", s, "retrain"])
        - average_gap(cells["random", s, "finetune"], cells["random", s, "retrain"])
        for s in (0, 1)
    ]
    assert by_name["finetune"]["worst_case less random"].value == pytest.approx(sum(change) / 2)
    assert [c.key for c in columns][-1] == "worst_case less random"
    stored = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    sets = stored["chosen"]["digits"]
    assert all(len(sets[name][seed]["ids"]) == 12 for name in ("random", "worst_case") for seed in ("0", "1"))
    assert sets["random"]["0"]["ids"] != sets["worst_case"]["0"]["ids"]
    assert stored["facts"]["selectors"]["worst_case"] == {"share": 0.1, "iterations": 2, "unlearn_epochs": 1}
    table = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "Average gap by forget set" in table
    assert "Retrained models" in table
    assert "chosen for it on random sets" in table
    files = {f: f.stat().st_mtime_ns for f in tmp_path.rglob("sets-*/**/*.json")}
    run(tmp_path)
    assert files == {f: f.stat().st_mtime_ns for f in tmp_path.rglob("sets-*/**/*.json")}, "nothing is done again"


def test_settings_are_chosen_on_random_sets_and_kept_for_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[tuple[str, ...], Any]] = []

    def planned(plan: Any, distance: Any, progress: Any, fixed: Any = None) -> Found:
        asked.append((plan.scenarios, fixed))
        records = [{"scenario": s, "method": "retrain", "seed": 0} for s in plan.scenarios]
        each = {s: {"finetune": {"learning_rate": 0.5}} for s in plan.scenarios}
        empty: dict[str, Any] = {s: {} for s in plan.scenarios}
        return Found(records, [], each, empty, empty)

    monkeypatch.setattr(worst_case, "run_plan", planned)
    plan = SetsPlan("digits", None, 60, ("worst_case", "random", "margin"), (), (0,), 3, {}, tmp_path, 1)
    found = worst_case._carried_over(plan, Progress())
    assert asked == [(("random",), None), (("worst_case", "margin"), {"finetune": {"learning_rate": 0.5}})]
    assert [r["scenario"] for r in found.records] == ["worst_case", "random", "margin"]
    assert list(found.settings) == ["worst_case", "random", "margin"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"dataset": ["digts"]}, "digits"),
        ({"sets": ["worse"]}, "there is no 'worse'"),
        ({"select": ["nothing=1"]}, "none of the selectors"),
        ({"methods": ["fine"]}, "finetune"),
        ({"methods": ["unsir"]}, "unsir"),
        ({"share": 1.5}, "--share"),
        ({"sets": ["margin"], "select": []}, "add random to --sets"),
        ({"tune": "none"}, "--tune"),
    ],
)
def test_what_cannot_be_is_refused_before_work(given: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=words):
        run(tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()
