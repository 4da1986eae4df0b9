from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from expunge.audits.language.probability import Probability, answer_probability, normalised_probability
from expunge.audits.observations import Observations
from expunge.audits.suite import run_one
from expunge.requests.request import DeletionRequest


def test_probability_is_the_geometric_mean_per_token(scored: Callable) -> None:
    """Token probabilities 1/2, 1/4, 1/4: (1/32)^(1/3) = 0.31498; end of sequence counts like any token."""
    scores = scored([math.log(0.5), math.log(0.25), math.log(0.25)], eos=True)
    assert answer_probability(scores) == pytest.approx(32 ** (-1 / 3))


def test_normalised_probability_by_hand(scored: Callable) -> None:
    """p = 1/2 against wrong ones of 1/4 and 1/4: 1/2 / (1/2 + 1/2) = 1/2."""
    half, quarter = scored([math.log(0.5)] * 4), scored([math.log(0.25)] * 2)
    assert normalised_probability(half, [quarter, quarter]) == pytest.approx(0.5)


@example([0.0, 1.0], 733.0)
@given(st.lists(st.floats(0.0, 5.0), min_size=2, max_size=6), st.floats(0.0, 2000.0))
def test_normalised_probability_ignores_a_common_factor(nll: list[float], shift: float) -> None:
    from expunge.tasks.tokens import TokenScores

    def one(value: float) -> TokenScores:
        import numpy as np

        zero = np.zeros(1)
        return TokenScores(np.array([-value]), zero, zero, zero.astype(bool), False, "")

    plain = normalised_probability(one(nll[0]), [one(v) for v in nll[1:]])
    moved = normalised_probability(one(nll[0] + shift), [one(v + shift) for v in nll[1:]])
    assert 0 <= plain <= 1
    assert moved == pytest.approx(plain, rel=1e-6)


def test_finding_averages_per_set(scripted: Callable, make_examples: Callable) -> None:
    request = DeletionRequest(make_examples(range(2)), make_examples(range(5, 6)))
    finding = run_one(Probability(), Observations({"unlearned": scripted({request.retain["answer"][0]: 3.0})}, request))
    estimates = finding.estimates["unlearned"]
    assert estimates["forget_nll"].value == pytest.approx(1.0)
    assert estimates["retain_nll"].value == pytest.approx(2.0)
    assert estimates["retain_probability"].value == pytest.approx((math.exp(-3) + math.exp(-1)) / 2)
    assert [(e.statistic, e.about, e.knowing_is) for e in finding.evidence] == [
        ("answer_nll", "forget", "low"),
        ("answer_nll", "retain", "low"),
    ]
    assert finding.evidence[0].groups[request.forget["id"][0]] == "person 0"


def test_parity_adds_to_the_denominator(scored: Callable) -> None:
    half, quarter, tiny = (scored([math.log(p)]) for p in (0.5, 0.25, 1e-10))
    assert normalised_probability(half, [quarter], parity=True) == pytest.approx(0.5 / (0.75 + 1e-10), rel=1e-12)
    assert normalised_probability(tiny, [tiny], parity=True) == pytest.approx(1 / 3)
    lost = scored([-2000.0])
    assert normalised_probability(lost, [lost], parity=True) == pytest.approx(0.0, abs=1e-200)
