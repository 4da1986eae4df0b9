from __future__ import annotations

import pytest

from expunge.benchmarks.predictor_settings import COMMON, LEARNING_RATES, STRENGTHS, check_given, serving, trials
from expunge.errors import BadInput
from expunge.methods.run import METHODS


def test_every_method_gets_as_many_trials_or_says_all_it_can() -> None:
    able = serving("image_classifier", "class")[0]
    for method in able:
        for count in (1, 4):
            found = trials(method, count, {})
            assert len(found) == min(count, len(STRENGTHS.get(method, ("", LEARNING_RATES))[1]))
            assert len({str(settings) for settings in found}) == len(found)


def test_methods_are_run_or_a_reason_is_given() -> None:
    for kind, scenario in (("image_classifier", "examples"), ("regressor", "range"), ("text_classifier", "class")):
        able, others = serving(kind, scenario)
        assert sorted([*able, *others, "retrain"]) == METHODS.names()
        assert all(kind in METHODS.get(m).tasks for m in able)
    assert "scenario class" in serving("image_classifier", "examples")[1]["unsir"]
    assert "blindspot" in serving("regressor", "range")[0]


def test_given_settings_win_where_they_are_known() -> None:
    assert [s["learning_rate"] for s in trials("finetune", 3, {"learning_rate": 0.5})] == [0.5]
    assert trials("ssd", 1, {"epochs": 9, "gamma": 2.0})[0]["epochs"] == 9
    assert "gamma" not in trials("ssd", 1, {"gamma": 2.0})[0]
    assert trials("l1_sparse", 1, {"gamma": 0.1})[0] == {**COMMON, "gamma": 0.1, "learning_rate": LEARNING_RATES[0]}


def test_what_follows_a_method_is_trained_alike() -> None:
    found = trials("prune", 2, {})
    assert [s["following"]["learning_rate"] for s in found] == list(LEARNING_RATES[:2])
    assert found[0]["following"]["epochs"] == COMMON["epochs"]
    assert "sparsity" not in found[0]["following"]


def test_what_nothing_knows_is_refused() -> None:
    check_given(["ssd", "l1_sparse"], {"gamma": 0.1, "alpha": 3.0})
    with pytest.raises(BadInput, match="gamma"):
        check_given(["ssd"], {"gamma": 0.1})
    with pytest.raises(BadInput, match="greater than 0"):
        trials("ssd", 1, {"alpha": -1.0})
