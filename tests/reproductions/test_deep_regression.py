from __future__ import annotations

from typing import Any

import pytest

from expunge.data.scenarios import value_range
from expunge.reproductions.deep_regression import REPORTED, DeepRegressionReproduction, _band, _compare, _friedman

METHODS = ("original", "retrain", "other", "finetune", "gaussian", "blindspot", "blindspot_long")


def test_the_lowest_are_forgotten() -> None:
    train, test, start = _friedman(0, quick=True)
    request = value_range(train, *_band("friedman", train), unseen=test)
    assert len(request.forget) == 120
    assert request.retain is not None
    assert max(request.forget["target"]) < min(request.retain["target"])
    again = _friedman(0, quick=True)[0]
    assert again["id"] == train["id"]
    assert again["target"] == train["target"]
    assert start.kind == "regressor"
    assert not set(train["id"]) & set(_friedman(1, quick=True)[0]["id"])


def test_everything_is_measured_against_the_retrained_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("expunge.reproductions.deep_regression.TRAINING", {"epochs": 3, "learning_rate": 2e-3})
    train, test, start = _friedman(0, quick=True)
    train, test = train.select(range(80)), test.select(range(60))
    request = value_range(train, *_band("friedman", train), unseen=test)
    found = _compare(start, train, test, request, 0, quick=False)
    assert set(found) == {f"{m}_{k}" for m in METHODS for k in REPORTED} | {"proxy_retain_error"}
    assert found["retrain_w1"] == 0
    assert min(found[f"{m}_w1"] for m in METHODS if m != "retrain") > 0


def measured(**changes: float) -> dict[str, float]:
    w1 = {"original": 1.8, "finetune": 1.7, "blindspot": 0.4, "blindspot_long": 0.7, "other": 0.1, "retrain": 0.0}
    numbers: dict[str, Any] = {f"friedman_{m}_w1": v for m, v in w1.items()}
    numbers |= {f"friedman_{m}_mae_retain": 1.0 for m in w1}
    numbers |= {f"friedman_{m}_mae_forget": 2.5 - v for m, v in w1.items()}
    return numbers | {"friedman_proxy_retain_error": 1.3} | {f"friedman_{k}": v for k, v in changes.items()}


@pytest.mark.parametrize(
    ("change", "failing"),
    [
        ({}, []),
        ({"blindspot_w1": 1.75}, [0]),
        ({"finetune_w1": 1.9}, [1]),
        ({"blindspot_mae_retain": 1.3}, [2]),
        ({"blindspot_mae_forget": 0.1}, [3]),
    ],
)
def test_one_seed_is_enough_to_fail(change: dict[str, float], failing: list[int]) -> None:
    checks = DeepRegressionReproduction().judge([measured(), measured(**change)])
    assert [k for k, check in enumerate(checks) if not check.holds] == failing
    assert all("friedman" in check.claim for check in checks)
