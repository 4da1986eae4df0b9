from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from expunge.audits.language.exact_memorization import exact_memorization


@pytest.mark.parametrize(
    ("hit", "eos", "expected", "parity"),
    [
        ([True, False, True, False], True, 2 / 3, 2 / 3),  # the end of sequence is not counted
        ([True, False, True, False], False, 2 / 4, 2 / 3),  # parity drops a real token
        ([False, True], True, 0.0, 0.0),
    ],
)
def test_by_hand(scored: Callable, hit: list[bool], eos: bool, expected: float, parity: float) -> None:
    scores = scored([-1.0] * len(hit), hit=hit, eos=eos)
    assert exact_memorization(scores) == pytest.approx(expected)
    assert exact_memorization(scores, parity=True) == pytest.approx(parity)


def test_no_tokens_is_no_value(scored: Callable) -> None:
    assert math.isnan(exact_memorization(scored([-1.0], eos=True)))
