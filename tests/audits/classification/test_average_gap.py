from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.audits.classification.average_gap import AverageGap, average_gap, gap_of_means, mean_of_gaps
from expunge.audits.observations import Observations
from expunge.audits.suite import run_one
from expunge.requests.request import DeletionRequest

A = {"ua": 10.0, "ra": 99.0, "ta": 70.0, "mia": 20.0}
B = {"ua": 4.0, "ra": 100.0, "ta": 72.0, "mia": 30.0}
records = st.lists(st.fixed_dictionaries({m: st.floats(0, 100) for m in A}), min_size=3, max_size=3)


def test_by_hand() -> None:
    assert average_gap(A, B) == pytest.approx((6 + 1 + 2 + 10) / 4)
    assert average_gap(A, B, ["ra"]) == 1.0


def test_opposite_differences_cancel_in_means_only() -> None:
    up, down = {**B, "ua": 9.0}, {**B, "ua": -1.0}
    assert gap_of_means([up, down], [B, B]) == 0.0
    assert mean_of_gaps([up, down], [B, B]) == pytest.approx(5 / 4)


def test_what_is_missing_is_not_0() -> None:
    with pytest.raises(ValueError, match="no value of mia"):
        average_gap({"ua": 1.0, "ra": 1.0, "ta": 1.0}, B)
    with pytest.raises(ValueError, match="no value of mia"):
        gap_of_means([A, {"ua": 1.0, "ra": 1.0, "ta": 1.0}], [B])
    with pytest.raises(ValueError, match="no trials"):
        gap_of_means([], [B])
    with pytest.raises(ValueError, match="cannot be paired"):
        mean_of_gaps([A], [B, B])


@settings(max_examples=30, deadline=None)
@given(records, records)
def test_the_mean_of_gaps_is_never_below(one: list, other: list) -> None:
    assert mean_of_gaps(one, other) >= gap_of_means(one, other) - 1e-9
    assert gap_of_means(one, one[::-1]) == pytest.approx(0.0, abs=1e-9)


def test_the_audit_measures_against_every_oracle(guesser: Callable, make_labelled: Callable) -> None:
    luck = np.random.default_rng(0)
    forget, retain, new = make_labelled("a" * 40), make_labelled("ab" * 40, 100), make_labelled("ab" * 40, 200)

    def model(wrong: int) -> object:
        """Wrong about so many of the forget examples, right about everything else; sure of what it was shown."""
        logits = {}
        for part, edge in ((forget, 1.0), (retain, 4.0), (new, 1.0)):
            for k, row in enumerate(part):
                right = (row["label"] == "a") != (part is forget and k < wrong)
                size = edge + 0.3 * luck.random()
                logits[row["id"]] = (size, 0.0, 0.0) if right else (0.0, size, 0.0)
        return guesser(logits)

    models = {"unlearned": model(20), "original": model(0), "oracle": model(4), "oracle-2": model(8)}
    found = run_one(AverageGap(), Observations(models, DeletionRequest(forget, retain, new)))
    own = found.estimates["unlearned"]
    # UA is 50 against 10 and 20: 35 from their mean; RA, TA and MIA-efficacy are the same for all.
    assert own["ua_difference"].value == pytest.approx(35.0)
    assert own["gap_of_means"].value == pytest.approx(35 / 4)
    assert own["mean_of_gaps"].value == pytest.approx((40 + 30) / 2 / 4)
    assert own["gap_of_means"].low < 35 / 4 < own["gap_of_means"].high
    assert found.estimates["original"]["ua_difference"].value == pytest.approx(-15.0)
    assert found.estimates["oracle"]["gap_of_means"].value == pytest.approx(10 / 4)
    assert found.evidence == ()


def test_an_only_oracle_has_nothing_to_be_compared_with(guesser: Callable, make_labelled: Callable) -> None:
    forget, retain, new = make_labelled("aaaa"), make_labelled("abab", 100), make_labelled("abab", 200)
    ids = [*forget["id"], *retain["id"], *new["id"]]
    models = {name: guesser(dict.fromkeys(ids, (1.0, 0.0, 0.0))) for name in ("unlearned", "oracle")}
    found = run_one(AverageGap(), Observations(models, DeletionRequest(forget, retain, new)))
    assert found.estimates["oracle"]["gap_of_means"].value is None
    assert found.estimates["unlearned"]["gap_of_means"].value == 0.0
    without = DeletionRequest(forget, retain, make_labelled("aaaa", 200), scenario="class")
    assert run_one(AverageGap(), Observations(models, without)).status == "no data"
