from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from expunge.audits.base import Estimate
from expunge.audits.intervals import (
    clopper_pearson,
    harmonic_mean,
    mean_interval,
    paired_difference,
    statistic_interval,
)
from expunge.errors import BadInput

numbers = st.lists(st.floats(-100, 100, allow_subnormal=False).map(lambda x: round(x, 3)), min_size=2, max_size=30)


def coverage(draw, truth, times=400):
    """Share of intervals that hold the truth; its standard error is about 0.011 at 400 draws."""
    estimates = [draw() for _ in range(times)]
    return np.mean([e.low <= truth <= e.high for e in estimates])


# ---- mean


def test_mean_of_nothing_is_no_value_and_of_one_has_no_interval():
    empty, single = mean_interval([]), mean_interval([0.4])
    assert empty.value is None
    assert empty.low is None
    assert empty.n == 0
    assert empty.note
    assert single.value == 0.4
    assert single.low is None
    assert single.high is None
    assert single.n == 1
    assert single.note


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_one_is_refused(bad):
    with pytest.raises(BadInput, match="position 1"):
        mean_interval([0.1, bad, 0.3])
    with pytest.raises(BadInput, match="some-id"):
        paired_difference({"a": 1.0, "some-id": bad}, {"a": 1.0, "some-id": 0.0})
    with pytest.raises(BadInput):
        statistic_interval({"x": [bad, 1.0]}, lambda parts: 0.0)


@pytest.mark.parametrize(("n", "floor"), [(5, 0.91), (10, 0.925), (40, 0.925)])
@pytest.mark.parametrize("family", ["normal", "skewed", "many zeros"])
def test_interval_of_a_mean_covers_what_it_says(n, floor, family):
    rng = np.random.default_rng(n)
    draw, truth = {
        "normal": (lambda: rng.normal(size=n), 0.0),
        "skewed": (lambda: -rng.exponential(size=n), -1.0),
        "many zeros": (lambda: rng.random(n) * (rng.random(n) < 0.4), 0.2),
    }[family]
    assert coverage(lambda: mean_interval(draw()), truth) >= floor - (0.05 if family != "normal" and n == 5 else 0)


def test_interval_follows_the_level_and_approaches_normal_theory():
    x = np.random.default_rng(0).normal(3, 2, 500)
    wide, narrow = mean_interval(x, level=0.99), mean_interval(x, level=0.8)
    assert wide.low < narrow.low < narrow.value < narrow.high < wide.high
    low, high = stats.t.interval(0.8, 499, x.mean(), x.std(ddof=1) / math.sqrt(500))
    assert (narrow.low, narrow.high) == pytest.approx((low, high), abs=0.02)


def test_blocks_of_resamples_and_large_samples_agree_with_normal_theory():
    for n in (1500, 3000):
        x = np.random.default_rng(n).exponential(size=n)
        low, high = stats.t.interval(0.95, n - 1, x.mean(), x.std(ddof=1) / math.sqrt(n))
        estimate = mean_interval(x)
        assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=0.006)


def test_cluster_interval_covers_where_the_example_interval_does_not():
    rng = np.random.default_rng(1)
    groups = [str(g) for g in range(12) for _ in range(8)]

    def values():
        return np.repeat(rng.normal(size=12), 8) + 0.3 * rng.normal(size=96)

    assert coverage(lambda: mean_interval(values(), groups), 0.0) >= 0.92
    assert coverage(lambda: mean_interval(values()), 0.0) < 0.7
    assert mean_interval(values(), groups).n == 12


def test_few_groups_are_said_and_not_resampled():
    estimate = mean_interval(np.arange(20.0), ["a", "b"] * 10)
    assert estimate.n == 20
    assert "2 group" in estimate.note


def test_unequal_groups_keep_the_mean_over_examples():
    groups = [str(i) for i in range(9)] + ["0"] * 11
    assert mean_interval(np.arange(20.0), groups).value == pytest.approx(9.5)


def test_proportion_gets_the_exact_interval():
    estimate = mean_interval([0.0] * 10)
    assert (estimate.low, estimate.high) == pytest.approx((0.0, 1 - 0.025**0.1))
    assert clopper_pearson(3, 10) == pytest.approx((0.06674, 0.65245), abs=1e-5)


def test_constant_values_do_not_pretend():
    estimate = mean_interval([0.25] * 6)
    assert estimate.low == estimate.high == estimate.value == 0.25
    assert "equal" in estimate.note


def test_few_values_among_many_equal_ones_are_bounded_by_how_many_they_may_be():
    values = np.zeros(117)
    values[3] = -1.0
    unknown, known = mean_interval(values), mean_interval(values, bounds=(-1, 1))
    assert (unknown.low, unknown.high) == (-1.0, 0.0)
    most = clopper_pearson(1, 117)[1]
    assert known.low == pytest.approx(-most)
    assert 0 < known.high <= most
    # Groups of one size are bounded in the same way, of several sizes by their range.
    groups = [str(k // 3) for k in range(117)]
    assert mean_interval(values, groups, bounds=(-1, 1)).low == pytest.approx(-clopper_pearson(1, 39)[1])
    groups[0] = groups[-1]
    assert mean_interval(values, groups, bounds=(-1, 1)).low == pytest.approx(-1 / 3)


def test_equal_values_with_bounds_are_no_certainty():
    most = clopper_pearson(0, 117)[1]
    constant = mean_interval(np.full(117, 0.25), bounds=(0, 1))
    assert (constant.low, constant.value, constant.high) == pytest.approx((0.25 * (1 - most), 0.25, 0.25 + 0.75 * most))
    assert not constant.note


@pytest.mark.parametrize("share", [0.01, 0.03, 0.1])
def test_bounded_interval_covers_where_most_values_are_equal(share):
    rng = np.random.default_rng(0)

    def values():
        return np.where(rng.random(117) < share, np.where(rng.random(117) < 0.2, 1.0, 0.1), 0.0)

    assert coverage(lambda: mean_interval(values(), bounds=(0, 1)), share * 0.28) >= 0.87
    widths = [found.high - found.low for found in (mean_interval(values(), bounds=(0, 1)) for _ in range(100))]
    assert np.mean(widths) < 0.11


@given(numbers, st.integers(0, 3))
def test_mean_interval_laws(values, seed):
    estimate = mean_interval(values, seed=seed, resamples=200)
    assert estimate.low <= estimate.value <= estimate.high
    assert estimate == mean_interval(values, seed=seed, resamples=200)
    bounded = mean_interval(values, seed=seed, resamples=200, bounds=(-100, 100))
    assert bounded.low >= -100
    assert bounded.high <= 100


def test_global_randomness_is_left_alone():
    np.random.seed(3)
    before = np.random.get_state()[1].copy()
    mean_interval(np.arange(9.0))
    assert np.array_equal(before, np.random.get_state()[1])


# ---- paired difference


def test_pairs_by_id_and_names_what_is_missing():
    a, b = {"x": 1.0, "y": 5.0, "z": 2.0}, {"z": 1.0, "x": 1.0, "y": 2.0}
    assert paired_difference(a, b).value == pytest.approx((0 + 3 + 1) / 3)
    with pytest.raises(BadInput) as caught:
        paired_difference({"x": 1.0, "left": 1.0}, {"x": 1.0, "right": 1.0})
    assert "left" in str(caught.value)
    assert "right" in str(caught.value)
    assert len(caught.value.problems) == 2


@given(st.permutations(range(8)))
def test_order_of_ids_does_not_matter(order):
    a = {str(i): float(i) for i in range(8)}
    b = {str(i): math.sin(i) for i in range(8)}
    assert paired_difference(a, {str(i): b[str(i)] for i in order}) == paired_difference(a, b)


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_one_difference_shows_no_direction(sign):
    one = dict.fromkeys(map(str, range(117)), 0.5)
    other = one | {"3": 0.5 - sign}
    for bounds, most in ((None, 1.0), ((-1.0, 1.0), clopper_pearson(1, 117)[1])):
        found = paired_difference(one, other, bounds=bounds)
        assert found.value == pytest.approx(sign / 117)
        assert found.low <= 0 <= found.high
        assert max(-found.low, found.high) == pytest.approx(most)
    same = paired_difference(one, one, bounds=(-1, 1))
    assert same.high == -same.low == pytest.approx(clopper_pearson(0, 117)[1])


# ---- functions of several samples


def test_harmonic_mean_by_hand_and_zero():
    assert harmonic_mean({"a": [1.0, 1.0], "b": [0.4, 0.6]}).value == pytest.approx(2 / (1 / 1 + 1 / 0.5))
    assert harmonic_mean({"a": [0.0, 0.0], "b": [0.5, 0.5]}).value == 0.0
    assert harmonic_mean({"a": [], "b": [0.5]}).value is None
    with pytest.raises(BadInput):
        harmonic_mean({"a": [-1.0, 0.5], "b": [0.5, 0.5]})


def test_samples_with_the_same_ids_are_resampled_together():
    x = {str(i): float(i % 7) for i in range(50)}
    opposite = {key: -value for key, value in reversed(x.items())}

    def total(parts):
        return float(sum(part.mean() for part in parts.values()))

    paired = statistic_interval({"a": x, "b": opposite}, total, resamples=200)
    loose = statistic_interval({"a": list(x.values()), "b": list(opposite.values())}, total, resamples=200)
    assert paired.high - paired.low < 1e-9 < loose.high - loose.low


def test_joint_interval_covers():
    rng = np.random.default_rng(2)
    truth = 2 / (1 / 0.5 + 1 / 0.25)

    def draw():
        return harmonic_mean({"a": rng.random(15), "b": rng.beta(1, 3, 20)}, resamples=300)

    assert coverage(draw, truth, 250) >= 0.90


def test_bad_settings_are_refused():
    with pytest.raises(BadInput):
        mean_interval([1.0, 2.0], level=1.0)
    with pytest.raises(BadInput):
        mean_interval([1.0, 2.0], groups=["a"])


@pytest.mark.parametrize("size", [-1.0, -0.3])
def test_a_few_values_on_one_side_are_no_evidence_of_a_side(size: float) -> None:
    def difference(count: int) -> Estimate:
        ids = [str(i) for i in range(117)]
        return paired_difference({i: size * (k < count) for k, i in enumerate(ids)}, dict.fromkeys(ids, 0.0))

    for count in (1, 2, 5):
        found = difference(count)
        assert found.high is not None
        assert found.high >= 0 > found.low  # type: ignore[operator]
    assert difference(30).high < 0  # type: ignore[operator]
    # Shares cannot be below 0, so that any above it are.
    share = mean_interval([0.0] * 116 + [0.4], bounds=(0.0, 1.0))
    assert share.low is not None
    assert share.low <= share.value  # type: ignore[operator]
