from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from expunge.audits.language.exact_memorization import exact_memorization
from expunge.audits.language.extraction_strength import extraction_strength
from expunge.tasks.tokens import TokenScores

HITS = st.lists(st.booleans(), min_size=1, max_size=12)


def of(hit: list[bool], eos: bool) -> TokenScores:
    zero = np.zeros(len(hit))
    return TokenScores(zero, zero, zero, np.array(hit, dtype=bool), eos, "")


def slow(hit: list[bool]) -> float:
    """The definition, tried out prefix by prefix."""
    m = len(hit)
    return 1 - next(k for k in range(m + 1) if all(hit[k:])) / m


@pytest.mark.parametrize(
    ("hit", "eos", "expected", "parity"),
    [
        # five tokens and the end of sequence, right from the third on: k = 2, 1 - 2/5
        ([True, False, True, True, True, True], True, 0.6, 0.6),
        # the same without an end of sequence: six tokens, 1 - 2/6; parity drops the last real token, 1 - 2/5
        ([True, False, True, True, True, True], False, 4 / 6, 0.6),
        # nothing right: 0; parity's loop ends one early and leaves 1/m for 5, 4 and 2 tokens (spec a, section 8)
        ([False] * 6, True, 0.0, 0.2),
        ([False] * 5, True, 0.0, 0.25),
        ([False] * 3, True, 0.0, 0.5),
        # a wrong one-token answer scores 1 in parity
        ([False, True], True, 0.0, 1.0),
        # the end of sequence itself is not counted
        ([True, True, False], True, 1.0, 1.0),
    ],
)
def test_by_hand(hit: list[bool], eos: bool, expected: float, parity: float) -> None:
    assert extraction_strength(of(hit, eos)) == pytest.approx(expected)
    assert extraction_strength(of(hit, eos), parity=True) == pytest.approx(parity)


@given(HITS, st.booleans())
def test_agrees_with_the_definition_and_never_exceeds_exact_memorisation(hit: list[bool], eos: bool) -> None:
    scores = of([*hit, True] if eos else hit, eos)
    strength = extraction_strength(scores)
    assert strength == pytest.approx(slow(hit))
    assert 0 <= strength <= exact_memorization(scores) <= 1


@given(HITS.filter(lambda h: len(h) > 1))
def test_parity_floor(hit: list[bool]) -> None:
    scores = of(hit, True)
    assert extraction_strength(scores, parity=True) == pytest.approx(
        max(extraction_strength(scores), 1 / (len(hit) - 1))
    )


def test_no_tokens_is_no_value(scored: Callable) -> None:
    assert math.isnan(extraction_strength(scored([-1.0], eos=True)))
    # open-unlearning drops the only label and counts the rest as 0
    assert extraction_strength(scored([-1.0]), parity=True) == 0.0
