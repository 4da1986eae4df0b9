from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from expunge.audits.language.forget_quality import ForgetQualityAudit, forget_quality
from expunge.audits.observations import Observations
from expunge.audits.suite import run_one
from expunge.requests.request import DeletionRequest


def test_disjoint_samples_by_hand() -> None:
    """Two samples of 4 that do not overlap: D = 1; 2 of C(8, 4) = 70 orders are that extreme, p = 2/70."""
    result = forget_quality([1, 2, 3, 4], [5, 6, 7, 8])
    assert result.distance == 1.0
    assert result.log10_p == pytest.approx(math.log10(2 / 70))
    assert (result.n, result.m) == (4, 4)


def test_equal_samples_have_p_one() -> None:
    assert forget_quality([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]).log10_p == pytest.approx(0.0)


@given(arrays(float, 6, elements=st.floats(-5, 5)), arrays(float, 7, elements=st.floats(-5, 5)))
def test_ratio_logarithm_and_inverse_give_the_same_p(a: np.ndarray, b: np.ndarray) -> None:
    # exp is strictly increasing only where its argument differs by more than rounding
    a, b = a.round(3), b.round(3)
    plain = forget_quality(list(a), list(b)).log10_p
    assert forget_quality(list(np.exp(a)), list(np.exp(b))).log10_p == pytest.approx(plain)
    assert forget_quality(list(-a), list(-b)).log10_p == pytest.approx(plain)
    assert forget_quality(list(b), list(a)).log10_p == pytest.approx(plain)


def test_a_p_below_the_smallest_float_is_finite() -> None:
    a = list(np.linspace(0, 1, 6000))
    assert math.isfinite(forget_quality(a, [x + 2 for x in a]).log10_p)


def test_finding_compares_with_the_oracle(scripted: Callable, request_: DeletionRequest) -> None:
    knows = scripted({row["paraphrased_answer"]: 0.01 for row in request_.forget.to_list()})
    seen = Observations({"unlearned": scripted(), "original": knows, "oracle": scripted()}, request_)
    finding = run_one(ForgetQualityAudit(), seen)
    assert finding.estimates["unlearned"]["log10_p"].value == pytest.approx(0.0)
    assert finding.estimates["original"]["log10_p"].value < -3
    assert finding.estimates["original"]["log10_p"].n == len(request_.forget)
    assert finding.estimates["oracle"]["log10_p"].value is None
    assert finding.attempted["n"]["original"] == len(request_.forget)
    assert not finding.evidence


def test_parity_tells_apart_what_the_added_number_does(scripted: Callable, request_: DeletionRequest) -> None:
    rows = request_.forget.to_list()
    texts = [t for row in rows for t in (row["paraphrased_answer"], *row["perturbed_answers"])]
    models = {"unlearned": scripted(dict.fromkeys(texts, 40.0)), "oracle": scripted(dict.fromkeys(texts, 1.0))}
    config = ForgetQualityAudit.Config(parity=True)
    p = [
        run_one(audit, Observations(models, request_)).estimates["unlearned"]["log10_p"].value
        for audit in (ForgetQualityAudit(), ForgetQualityAudit(config))
    ]
    assert p[0] == pytest.approx(0.0)
    assert p[1] < -1
