from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from expunge.audits.classification.average_gap import average_gap
from expunge.benchmarks import predictor_data
from expunge.benchmarks.predictor_tables import TUNING_SEED, Plan, _choose, check_plan, run_plan
from expunge.errors import BadInput
from expunge.runs.progress import Progress


def here(call: Callable[..., Any], arguments: Sequence[tuple[Any, ...]], **_: Any) -> Iterator[Any]:
    """In this process, and in another order than asked."""
    yield from (call(*given) for given in reversed(arguments))


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    monkeypatch.setattr("expunge.runs.engine.run_all", here)
    digits = predictor_data.CLASSIFICATION["digits"]
    short = replace(digits, training={**digits.training, "epochs": 2})
    monkeypatch.setitem(predictor_data.CLASSIFICATION, "digits", short)  # type: ignore[arg-type]
    return Plan("digits", None, 120, ("random", "class"), ("ssd", "unsir"), (0, 1), 2, {"epochs": 1}, tmp_path, 1)


def test_all_is_run_and_not_twice(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    found = run_plan(plan, average_gap, Progress())
    said = [(r["scenario"], r["method"], r["seed"]) for r in found.records]
    rows = ("retrain", "retrain, other seed", "original")
    assert sorted(said) == sorted(
        [(s, m, k) for s in ("random", "class") for m in (*rows, "ssd") for k in (0, 1)]
        + [("class", "unsir", k) for k in (0, 1)]
    )
    assert not any("failed" in r for r in found.records)
    assert {r["seed"] for r in found.tried} == {TUNING_SEED}
    assert set(found.settings["class"]) == {"ssd", "unsir"}
    assert "scenario class" in found.left_out["random"]["unsir"]
    assert sorted(found.retraining["class"]) == [0, 1]
    first = {r["method"]: r for r in found.records if r["scenario"] == "class" and r["seed"] == 0}
    assert first["retrain"]["ua"] == first["retrain, other seed"]["ua"] == 100

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("was done before")

    monkeypatch.setattr("expunge.benchmarks.predictor_cell.unlearn", refuse)
    again = run_plan(plan, average_gap, Progress())
    assert again == found


def test_one_trial_tunes_nothing(plan: Plan) -> None:
    found = run_plan(replace(plan, count=1, methods=("ssd",), scenarios=("class",)), average_gap, Progress())
    assert found.tried == []
    assert not (plan.out / "models" / "digits-120" / f"original-{TUNING_SEED}").exists()


def test_a_large_seed_is_a_seed_like_any_other(plan: Plan) -> None:
    large = replace(plan, count=1, methods=("ssd",), scenarios=("class",), seeds=(12_345,))
    assert list(run_plan(large, average_gap, Progress()).retraining["class"]) == [12_345]


def test_without_names_all_methods_that_serve_are_run(plan: Plan) -> None:
    chosen, left_out = check_plan(replace(plan, methods=()))
    assert {"finetune", "salun", "scrub", "fisher", "influence", "nearest_mean"} <= set(chosen["random"])
    assert "unsir" in chosen["class"]
    assert "unsir" in left_out["random"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seeds": (0, TUNING_SEED)}, "is the seed that settings are tried on"),
        ({"methods": ("blindspot",)}, "serves regressor"),
        ({"methods": ("unsir",), "scenarios": ("random",)}, "scenario class"),
        ({"methods": ("retrain",)}, "always there"),
        ({"methods": ("slaun",)}, "salun"),
        ({"given": {"gammma": 1}}, "gamma"),
        ({"scenarios": ("range",)}, "range"),
    ],
)
def test_what_cannot_be_run_is_refused_first(plan: Plan, change: dict[str, Any], words: str) -> None:
    if "given" in change:
        change = {**change, "methods": ("l1_sparse",)}
    with pytest.raises(BadInput, match=words):
        check_plan(replace(plan, **change))
    assert not any(plan.out.iterdir())


def test_settings_are_chosen_by_distance() -> None:
    tried = [
        {"method": "retrain", "x": 3.0, "trial": 0},
        {"method": "m", "x": 9.0, "trial": 0},
        {"method": "m", "x": 2.0, "trial": 1},
        {"method": "m", "x": 4.0, "trial": 2},
        {"method": "broken", "failed": "why", "trial": 0},
    ]

    def distance(a: Any, b: Any) -> float:
        return abs(float(a["x"]) - float(b["x"]))

    settings = [{"k": k} for k in range(3)]
    assert _choose("m", tried, settings, distance) == {"k": 1}
    assert _choose("broken", tried, settings, distance) == {"k": 0}
