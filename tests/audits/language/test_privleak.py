from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from expunge.audits.intervals import statistic_interval
from expunge.audits.language.privleak import PrivLeak, privleak
from expunge.audits.observations import Observations
from expunge.audits.roc import auc
from expunge.audits.suite import run_one
from expunge.requests.request import DeletionRequest

AREA = st.floats(0.0, 0.99)


def muse(auc_model: float, auc_oracle: float) -> float:
    """MUSE: A = P(score of holdout < score of forget) with loss-like scores, that is 1 - AUC; 100 (A - A_r) / A_r."""
    a, r = 1 - auc_model, 1 - auc_oracle
    return 100 * (a - r) / r


def open_unlearning(auc_model: float, auc_oracle: float) -> float:
    return 100 * ((1 - auc_model) - (1 - auc_oracle)) / ((1 - auc_oracle) + 1e-10)


@given(AREA, AREA)
def test_both_orientations_give_the_same_number(auc_model: float, auc_oracle: float) -> None:
    assert privleak(auc_model, auc_oracle) == pytest.approx(muse(auc_model, auc_oracle), abs=1e-6)
    assert privleak(auc_model, auc_oracle, parity=True) == pytest.approx(
        open_unlearning(auc_model, auc_oracle), abs=1e-9
    )


def test_by_hand() -> None:
    """Everything remembered: -100. As the oracle: 0. Oracle 0.4772 (MUSE News, A_r = 0.4772): at most +109.6."""
    assert privleak(1.0, 0.5) == pytest.approx(-100.0)
    assert privleak(0.5, 0.5) == 0.0
    assert privleak(0.0, 1 - 0.4772) == pytest.approx(109.6, abs=0.05)
    assert math.isnan(privleak(0.3, 1.0))
    assert privleak(0.3, 1.0, parity=True) == pytest.approx(70 / 1e-10)


def test_finding(scripted: Callable, request_: DeletionRequest) -> None:
    rng = np.random.default_rng(0)
    answers = [*request_.forget["answer"], *request_.holdout["answer"]]
    knows = dict.fromkeys(answers, 3.0) | dict.fromkeys(request_.forget["answer"], 0.1)
    never = {a: float(x) for a, x in zip(answers, rng.normal(2, 0.5, len(answers)), strict=True)}
    other = {a: float(x) for a, x in zip(answers, rng.normal(2, 0.5, len(answers)), strict=True)}
    seen = Observations(
        {"unlearned": scripted(knows), "oracle": scripted(never), "oracle-2": scripted(other)}, request_
    )
    finding = run_one(PrivLeak(), seen)
    unlearned = finding.estimates["unlearned"]
    assert unlearned["privleak"].value == pytest.approx(-100.0)
    assert unlearned["auc"].value == 1.0
    assert finding.estimates["oracle"]["privleak"].value is None
    # the interval is the plain joint bootstrap, though each resample's areas are computed once for two numbers
    sides = {
        who + role: {i: v["min_k"] for i, v in finding.per_example[model].items() if i in getattr(request_, role)["id"]}
        for who, model in (("", "oracle-2"), ("oracle ", "oracle"))
        for role in ("forget", "holdout")
    }
    most = 1 - 1 / 64
    plain = statistic_interval(
        sides,
        lambda p: privleak(auc(p["forget"], p["holdout"]), min(most, auc(p["oracle forget"], p["oracle holdout"]))),
        resamples=1000,
    )
    assert finding.estimates["oracle-2"]["privleak"] == plain
    assert unlearned["auc_difference"].value == pytest.approx(1.0 - finding.estimates["oracle"]["auc"].value)


def test_without_an_oracle_there_is_no_data_and_no_half(scripted: Callable, request_: DeletionRequest) -> None:
    finding = run_one(PrivLeak(), Observations({"unlearned": scripted()}, request_))
    assert finding.status == "no data"
    assert "oracle" in finding.note
    assert not finding.estimates


def test_an_oracle_that_tells_them_apart_leaves_it_undefined(scripted: Callable, request_: DeletionRequest) -> None:
    apart = dict.fromkeys(request_.forget["answer"], 0.1) | dict.fromkeys(request_.holdout["answer"], 3.0)
    seen = Observations({"unlearned": scripted(), "oracle": scripted(apart)}, request_)
    estimate = run_one(PrivLeak(), seen).estimates["unlearned"]["privleak"]
    assert estimate.value is None
    assert "undefined" in estimate.note
