from __future__ import annotations

import math
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from expunge.audits.language.membership import (
    Membership,
    loss_score,
    min_k_plus_plus_score,
    min_k_score,
    reference_score,
    zlib_score,
)
from expunge.audits.observations import Observations
from expunge.audits.roc import auc
from expunge.audits.suite import run_one
from expunge.requests.request import DeletionRequest
from expunge.tasks.tokens import TokenScores

LOGS = st.lists(st.floats(-50.0, 0.0), min_size=2, max_size=10)


def of(logs: list[float], eos: bool = False) -> TokenScores:
    x = np.array(logs)
    return TokenScores(x, x * 0 - 1, x * 0 + 1, x > -0.5, eos, "text")


def test_loss_counts_the_end_of_sequence(scored: Callable) -> None:
    assert loss_score(scored([-1.0, -3.0, -5.0], eos=True)) == pytest.approx(-3.0)


def test_zlib_divides_by_compressed_bytes(scored: Callable) -> None:
    text = "Zoë " * 10
    assert zlib_score(scored([-2.0, -4.0], text=text)) == pytest.approx(-3.0 / len(zlib.compress(text.encode())))


def test_min_k_by_hand(scored: Callable) -> None:
    """Five tokens with an end of sequence of -9 that is not counted; k = 0.4 takes the two lowest: (-4 - 3) / 2.

    Parity without an end of sequence drops the last real token: of -1 -4 -2 -3, int(0.4 * 4) = 1 is taken: -4.
    """
    scores = scored([-1.0, -4.0, -2.0, -3.0, -0.5, -9.0], eos=True)
    assert min_k_score(scores, 0.4) == pytest.approx(-3.5)
    bare = scored([-1.0, -4.0, -2.0, -3.0, -0.5])
    assert min_k_score(bare, 0.4) == pytest.approx(-3.5)
    assert min_k_score(bare, 0.4, parity=True) == pytest.approx(-4.0)
    assert min_k_score(scored([-1.0]), 0.4, parity=True) == 0.0  # one label: dropped, and nothing counts as 0
    # never fewer than one token
    assert min_k_score(scored([-1.0, -2.0]), 0.1) == pytest.approx(-2.0)


def test_min_k_plus_plus_by_hand(scored: Callable) -> None:
    """z = (-2 + 1) / 2 = -0.5 and (-3 + 2) / 1e-3 = -1000, the variance 1e-9 being held at 1e-6."""
    scores = scored([-2.0, -3.0], mean=[-1.0, -2.0], var=[4.0, 1e-9])
    assert min_k_plus_plus_score(scores, 0.5) == pytest.approx(-1000.0)
    assert min_k_plus_plus_score(scores, 1.0) == pytest.approx(-500.25)


def test_reference_is_the_difference_of_nlls(scored: Callable) -> None:
    assert reference_score(scored([-1.0]), scored([-3.0, -5.0])) == pytest.approx(3.0)


def test_no_tokens_is_no_value(scored: Callable) -> None:
    assert math.isnan(min_k_score(scored([-1.0], eos=True)))


@given(LOGS, st.floats(0.01, 1.0), st.booleans())
def test_min_k_lies_between_the_least_and_the_mean(logs: list[float], k: float, eos: bool) -> None:
    scores = of(logs, eos)
    counted = logs[:-1] if eos else logs
    assert min(counted) - 1e-9 <= min_k_score(scores, k) <= np.mean(counted) + 1e-9
    assert min_k_score(scores, 1.0) == pytest.approx(np.mean(counted))


@given(st.lists(LOGS, min_size=1, max_size=5), st.lists(LOGS, min_size=1, max_size=5))
def test_auc_of_swapped_sides_adds_up_to_one(members: list[list[float]], others: list[list[float]]) -> None:
    a, b = ([loss_score(of(row)) for row in side] for side in (members, others))
    assert auc(a, b) + auc(b, a) == pytest.approx(1.0)


def test_a_model_that_remembers_is_seen_and_one_that_flees_too(scripted: Callable, request_: DeletionRequest) -> None:
    """All forget NLLs below all holdout NLLs: AUC 1 and everything is found at any false-positive rate; above: 0."""
    low = dict.fromkeys(request_.forget["answer"], 0.1) | dict.fromkeys(request_.holdout["answer"], 3.0)
    high = dict.fromkeys(request_.forget["answer"], 9.0) | dict.fromkeys(request_.holdout["answer"], 3.0)
    seen = Observations({"unlearned": scripted(high), "original": scripted(low), "oracle": scripted()}, request_)
    finding = run_one(Membership(), seen)
    assert finding.estimates["original"]["loss_auc"].value == 1.0
    assert finding.estimates["original"]["loss_tpr_at_0.001"].value == 1.0
    assert "false positive" in finding.estimates["original"]["loss_tpr_at_0.001"].note
    assert finding.estimates["unlearned"]["loss_auc"].value == 0.0
    assert finding.estimates["oracle"]["loss_auc"].value == 0.5
    assert finding.estimates["original"]["reference_auc"].value == 1.0
    assert finding.estimates["oracle"]["reference_auc"].value is None
    assert not finding.evidence
    (given,) = run_one(Membership(Membership.Config(evidence=True)), seen).evidence
    assert (given.statistic, given.audit, given.family) == ("min_k_plus_plus", "membership", "membership")
    assert set(given.values) == {"unlearned", "original", "oracle"}
    assert set(given.control["oracle"]) == set(request_.holdout["id"])


def test_without_an_oracle_the_reference_score_is_no_data(scripted: Callable, request_: DeletionRequest) -> None:
    asked = Membership(Membership.Config(evidence=True))
    finding = run_one(asked, Observations({"unlearned": scripted()}, request_))
    assert not finding.evidence
    assert finding.estimates["unlearned"]["reference_auc"].value is None
    assert finding.estimates["unlearned"]["reference_auc"].note == "no oracle to compare with"
