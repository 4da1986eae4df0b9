from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from expunge.audits.intervals import clopper_pearson
from expunge.audits.roc import auc, auc_interval, roc_curve, tpr_at_fpr
from expunge.errors import BadInput

scores = st.lists(st.integers(-5, 5).map(float), min_size=1, max_size=12)


def coverage(draw, truth, times=400):
    """Share of intervals that hold the truth; its standard error is about 0.011 at 400 draws."""
    estimates = [draw() for _ in range(times)]
    return np.mean([e.low <= truth <= e.high for e in estimates])


@given(scores, scores)
def test_auc_is_the_pairwise_count(members, others):
    by_hand = np.mean([(m > o) + 0.5 * (m == o) for m in members for o in others])
    assert auc(members, others) == pytest.approx(by_hand)
    assert auc(others, members) == pytest.approx(1 - by_hand)
    assert auc([3 * m + 1 for m in members], [3 * o + 1 for o in others]) == pytest.approx(by_hand)


@given(scores, scores)
def test_area_under_the_curve_is_the_auc(members, others):
    fpr, tpr = roc_curve(members, others)
    assert (fpr[0], tpr[0], fpr[-1], tpr[-1]) == (0, 0, 1, 1)
    assert np.all(np.diff(fpr) >= 0)
    assert np.all(np.diff(tpr) >= 0)
    assert np.trapezoid(tpr, fpr) == pytest.approx(auc(members, others))


@given(scores, scores)
def test_auc_interval_is_sane_and_mirrors(members, others):
    assume(min(len(members), len(others)) > 1)
    here, there = auc_interval(members, others), auc_interval(others, members)
    assert 0 <= here.low <= here.value <= here.high <= 1
    assert here.low < here.high
    assert (here.low, here.high) == pytest.approx((1 - there.high, 1 - there.low), abs=1e-3)


@pytest.mark.parametrize("truth", [0.5, 0.9, 0.99])
def test_auc_interval_covers(truth):
    rng = np.random.default_rng(4)
    shift = math.sqrt(2) * stats.norm.ppf(truth)
    assert coverage(lambda: auc_interval(rng.normal(shift, 1, 20), rng.normal(size=25)), truth) >= 0.92


def test_auc_interval_matches_delong_by_hand():
    rng = np.random.default_rng(5)
    m, o = rng.normal(0.7, 1, 300), rng.normal(0, 1, 300)
    placed = (m[:, None] > o[None]).astype(float)
    error = math.sqrt(placed.mean(1).var(ddof=1) / 300 + placed.mean(0).var(ddof=1) / 300)
    estimate = auc_interval(m, o)
    assert (estimate.high - estimate.low) == pytest.approx(2 * 1.96 * error, rel=0.05)


def test_auc_without_overlap_is_not_certain():
    estimate = auc_interval(np.arange(10, 20), np.arange(10))
    assert estimate.value == estimate.high == 1.0
    assert 0.6 < estimate.low < 0.95
    assert auc_interval([], [1.0]).value is None
    assert auc_interval([2.0], [1.0]).low is None


def test_grouped_auc_is_wider_for_correlated_groups():
    rng = np.random.default_rng(6)
    groups = [str(g) for g in range(10) for _ in range(10)]
    m = np.repeat(rng.normal(0.5, 1, 10), 10)
    o = rng.normal(size=100)
    plain, grouped = auc_interval(m, o), auc_interval(m, o, member_groups=groups)
    assert grouped.value == plain.value
    assert grouped.n == 10
    assert grouped.high - grouped.low > 1.5 * (plain.high - plain.low)


def test_tpr_at_fpr_by_hand():
    others = list(range(100))
    members = [99.5, 98.5, 98.0, 50.0]
    assert tpr_at_fpr(members, others, 0.01).value == 0.5  # one of 100 may exceed: threshold 98, ties not counted
    assert tpr_at_fpr(members, others, 0.0).value == 0.25
    assert tpr_at_fpr(members, others, 0.5).value == 1.0
    assert tpr_at_fpr(members, others, 0.01).note == ""
    low, high = clopper_pearson(2, 4)
    assert (tpr_at_fpr(members, others, 0.01).low, tpr_at_fpr(members, others, 0.01).high) == (low, high)


def test_a_rate_too_low_to_resolve_is_said():
    estimate = tpr_at_fpr([5.0, 0.5], list(np.linspace(0, 1, 40)), 0.001)
    assert estimate.value == 0.5
    assert "0.025" in estimate.note
    assert tpr_at_fpr([], [1.0], 0.1).value is None


@settings(max_examples=50)
@given(scores, scores, st.floats(0, 0.99), st.floats(0, 0.99))
def test_tpr_grows_with_the_rate_allowed(members, others, one, other):
    a, b = sorted((one, other))
    assert tpr_at_fpr(members, others, a).value <= tpr_at_fpr(members, others, b).value


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_one_is_refused(bad):
    with pytest.raises(BadInput):
        auc([bad], [0.0])


def test_bad_settings_are_refused():
    with pytest.raises(BadInput):
        tpr_at_fpr([1.0], [1.0], 1.0)
    with pytest.raises(BadInput):
        auc([], [1.0])
