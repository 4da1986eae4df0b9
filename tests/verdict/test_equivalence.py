from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from expunge.verdict.equivalence import (
    Difference,
    holm,
    needed_n,
    needed_n_to_differ,
    p_above,
    p_below,
    p_different,
    p_equivalent,
    paired,
    two_sample,
)

probabilities = st.lists(st.floats(0, 1), min_size=1, max_size=12)
differences = st.builds(
    Difference, st.floats(-3, 3), st.floats(0.01, 2), st.integers(2, 50).map(float), st.integers(3, 51)
)


def test_paired_tost_by_hand():
    d = paired([0.1, -0.2, 0.05, 0.15, -0.1])
    assert d.value == pytest.approx(0.0)
    error = math.sqrt(0.085 / 4 / 5)  # squares: .01 + .04 + .0025 + .0225 + .01 = .085
    assert d.error == pytest.approx(error)
    assert p_equivalent(d, 0.3) == pytest.approx(stats.t.sf(0.3 / error, 4))
    shifted = paired([1.1, 0.8, 1.05, 1.15, 0.9])
    assert p_equivalent(shifted, 0.3) == pytest.approx(stats.t.cdf(0.7 / error, 4))
    assert p_different(shifted, 0.3) == pytest.approx(stats.t.sf(0.7 / error, 4) + stats.t.sf(1.3 / error, 4))
    assert shifted.interval(0.9) == pytest.approx(stats.t.interval(0.9, 4, 1.0, error))


def test_at_margin_zero_it_is_the_t_test():
    rng = np.random.default_rng(0)
    x, y = rng.normal(0.4, 1, 15), rng.normal(0, 2, 22)
    assert p_different(paired(x), 0.0) == pytest.approx(stats.ttest_1samp(x, 0).pvalue)
    assert p_different(two_sample(x, y), 0.0) == pytest.approx(stats.ttest_ind(x, y, equal_var=False).pvalue)
    assert p_above(paired(x), 0.1) == pytest.approx(stats.ttest_1samp(x, 0.1, alternative="greater").pvalue)
    assert p_below(paired(x), 0.1) == pytest.approx(stats.ttest_1samp(x, 0.1, alternative="less").pvalue)


def test_constant_values_keep_a_floor_of_doubt():
    few, many = paired([0.0] * 8, floor=1.0), paired([0.0] * 40, floor=1.0)
    assert few.error == pytest.approx(1 / 9)
    assert p_equivalent(few, 0.25) > 0.02 > p_equivalent(many, 0.25)
    assert p_equivalent(paired([0.0] * 8), 0.25) == 0.0
    assert p_equivalent(paired([1.0] * 8), 0.25) == 1.0
    assert p_different(paired([1.0] * 8), 0.25) == 0.0
    assert two_sample([1.0, 1.0], [0.0, 0.0]).error == 0.0


def test_one_unit_decides_nothing():
    for d in (paired([3.0]), two_sample([3.0], [0.0, 0.1])):
        assert p_equivalent(d, 10.0) == 1.0
        assert p_different(d, 0.0) == 1.0
        assert d.interval(0.95) is None
        assert needed_n(d, 10.0, 0.05, 0.8) is None


@given(differences, st.floats(0.01, 3))
def test_equivalent_and_different_exclude_each_other_and_mirror(d, margin):
    mirrored = Difference(-d.value, d.error, d.df, d.n)
    assert p_equivalent(d, margin) == pytest.approx(p_equivalent(mirrored, margin))
    assert p_different(d, margin) == pytest.approx(p_different(mirrored, margin))
    assert p_equivalent(d, margin) + p_different(d, margin) >= 1 - 1e-9
    assert p_equivalent(d, 2 * margin) <= p_equivalent(d, margin) + 1e-12
    assert p_different(d, 2 * margin) >= p_different(d, margin) - 1e-12


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


@given(probabilities, st.randoms())
def test_holm_is_monotone_and_ignores_order(p, random):
    adjusted = holm(p)
    assert all(p[i] <= adjusted[i] <= min(1.0, max(p) * len(p)) + 1e-12 for i in range(len(p)))
    order = sorted(range(len(p)), key=lambda i: p[i])
    assert all(adjusted[a] <= adjusted[b] for a, b in pairwise(order))
    shuffled = list(range(len(p)))
    random.shuffle(shuffled)
    assert holm([p[i] for i in shuffled]) == pytest.approx([adjusted[i] for i in shuffled])
    assert all(more >= less - 1e-12 for more, less in zip(holm([*p, 1.0]), adjusted, strict=False))


def test_needed_n_reaches_its_power_in_simulation():
    rng = np.random.default_rng(1)
    first = Difference(0.1, 1 / 20, 399, 400)
    n = needed_n(first, 0.5, 0.05, 0.8)
    shown = np.mean([p_equivalent(paired(rng.normal(0.1, 1, n)), 0.5) <= 0.05 for _ in range(600)])
    assert shown == pytest.approx(0.8, abs=0.06)
    m = needed_n_to_differ(Difference(1.0, 1 / 20, 399, 400), 0.5, 0.05, 0.8)
    shown = np.mean([p_above(paired(rng.normal(1.0, 1, m)), 0.5) <= 0.05 for _ in range(600)])
    assert shown == pytest.approx(0.8, abs=0.06)


@given(differences, st.floats(0.05, 3), st.sampled_from([0.05, 0.01]))
def test_needed_n_exists_just_where_the_difference_is_within(d, margin, alpha):
    n, one_sided = needed_n(d, margin, alpha, 0.8), needed_n(d, margin, alpha, 0.8, one_sided=True)
    if abs(d.value) >= margin:
        assert n is None
    if d.value <= -margin:
        assert one_sided is None
    if n is not None:
        assert one_sided is not None
        assert one_sided <= n
        stricter = needed_n(d, margin, alpha, 0.95)
        assert stricter is None or stricter >= n
    assert needed_n_to_differ(d, margin, alpha, 0.8) is None or abs(d.value) > margin
