"""Choosing how strongly to subtract; the search itself is tested with the methods that use it."""

from __future__ import annotations

import math

import pytest

from expunge.errors import BadInput
from expunge.methods.strengths import StrengthConfig, Tried, check_strengths, choose_strength
from expunge.training.settings import StopSettings


def test_the_largest_strength_before_the_ceiling_or_the_one_closest_to_a_target() -> None:
    tried = [Tried(0.5, 1.0, 0.1), Tried(2.0, 3.0, 0.3), Tried(1.0, 2.0, 0.2), Tried(4.0, 9.0, math.nan)]
    tried.append(Tried(8.0, 9.0, 0.0))  # beyond one that broke
    assert choose_strength(tried, 0.3) == tried[1]
    assert choose_strength(tried, 0.25) == tried[2]
    assert choose_strength(tried, 0.05) is None
    assert choose_strength(tried, math.inf, target=1.2) == tried[0]
    assert choose_strength(tried, math.inf, target=50.0) == tried[1]
    assert choose_strength(tried, math.inf, target=1.5) == tried[0]  # of two as close, the smaller
    assert choose_strength([], 1.0) is None


def test_rules_without_anything_to_judge_are_refused_together() -> None:
    rules = StopSettings(every=1, forget_target=2.0, retain_ceiling=0.1)
    with pytest.raises(BadInput, match=r"(?s)stop.forget_target.*stop.retain_ceiling"):
        check_strengths(StrengthConfig(), rules)
    check_strengths(StrengthConfig(strengths=(1.0,)), rules)
    check_strengths(StrengthConfig(), StopSettings())
