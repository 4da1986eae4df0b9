from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.audits.classification.threshold_mia import ThresholdMia, best_threshold, member_scores, threshold_members
from expunge.audits.prediction_features import FEATURES
from expunge.tasks.predictions import Predictions

some = st.lists(st.integers(0, 8), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None)
@given(some, some)
def test_no_observed_threshold_is_better(members: list[int], others: list[int]) -> None:
    m, n = np.array(members, dtype=float), np.array(others, dtype=float)

    def balanced(t: float) -> Fraction:
        return Fraction(int((m >= t).sum()), len(m)) + Fraction(int((n < t).sum()), len(n))

    chosen = best_threshold(m, n)
    best = max(balanced(t) for t in (*members, *others))
    assert chosen == min(t for t in (*members, *others) if balanced(t) == best)


def test_one_side_alone_gives_none() -> None:
    with pytest.raises(ValueError, match="both kinds"):
        best_threshold(np.ones(3), np.ones(0))


def test_each_class_has_its_own_and_an_unknown_one_that_of_all() -> None:
    """Members of class 0 lie above 0.8, of class 1 above 0.3; class 2 is nobody's."""
    members = (np.array([0.9, 0.8, 0.4, 0.3]), np.array([0, 0, 1, 1]))
    others = (np.array([0.7, 0.6, 0.2, 0.1]), np.array([0, 0, 1, 1]))
    asked = (np.array([0.75, 0.35, 0.35, 0.95, 0.05]), np.array([0, 0, 1, 2, 2]))
    assert threshold_members(members, others, asked).tolist() == [False, False, True, True, False]


def test_scores_rise_with_knowledge_and_correctness_needs_no_threshold() -> None:
    logits = np.array([[5.0, 0.0, 0.0], [0.5, 0.0, 0.0], [0.0, 3.0, 0.0]])
    found = Predictions(["sure", "unsure", "wrong"], logits, np.zeros(3, dtype=np.int64), classes=("a", "b", "c"))
    scores = member_scores(found)
    assert set(scores) == set(FEATURES) == set(ThresholdMia.attacks)
    assert all(scores[name][0] > scores[name][1] for name in ("confidence", "entropy", "modified_entropy"))
    assert scores["modified_entropy"][2] < scores["modified_entropy"][1]
    called = ThresholdMia().called(found, found, found, tuple(ThresholdMia.attacks))
    assert called["correctness"].tolist() == [True, True, False]


@settings(max_examples=60, deadline=None)
@given(some, some)
def test_parity_takes_the_first_of_equally_good_ones_and_zero_for_one_side(
    members: list[int], others: list[int]
) -> None:
    m, n = np.array(members, dtype=float), np.array(others, dtype=float)
    best, chosen = -1.0, -1.0
    for t in (*members, *others):  # one after the other, as released
        rate = 0.5 * ((m >= t).sum() / len(m) + (n < t).sum() / len(n))
        if rate > best:
            best, chosen = rate, t
    assert best_threshold(m, n, parity=True) == chosen
    assert best_threshold(m, n[:0], parity=True) == best_threshold(m[:0], n, parity=True) == 0.0


def test_parity_calls_a_class_that_is_gone_by_the_sign_of_its_scores() -> None:
    members, others = (np.array([0.9]), np.array([0])), (np.array([0.1]), np.array([0]))
    asked = (np.array([0.05, -0.3, 0.5]), np.array([2, 2, 0]))
    assert threshold_members(members, others, asked, parity=True).tolist() == [True, False, False]
    assert threshold_members(members, others, asked).tolist() == [False, False, False]
