from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from expunge.audits.language.evaluation_awareness import OBSERVED, UNOBSERVED, EvaluationAwareness, holm, mcnemar
from expunge.audits.observations import Observations
from expunge.audits.suite import run_one
from expunge.requests.request import DeletionRequest
from expunge.tasks.cost import Cost
from expunge.tasks.tokens import TokenScores


@given(st.integers(0, 40), st.integers(0, 40))
def test_mcnemar_is_twice_the_smaller_tail(a: int, b: int) -> None:
    n = a + b
    expected = min(1.0, 2 * float(binom.cdf(min(a, b), n, 0.5))) if n else 1.0
    assert mcnemar(a, b) == pytest.approx(expected)
    assert mcnemar(a, b) == pytest.approx(mcnemar(b, a))


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_never_helps_and_keeps_the_order(p: list[float]) -> None:
    adjusted = holm(p)
    assert all(a >= b - 1e-12 for a, b in zip(adjusted, p, strict=True))
    order = np.argsort(p, kind="stable")
    assert all(np.diff(np.array(adjusted)[order]) >= -1e-12)


def test_cues_are_as_long_as_each_other() -> None:
    assert len(OBSERVED) == len(UNOBSERVED) >= 8
    for a, b in zip(OBSERVED, UNOBSERVED, strict=True):
        assert len(a.split()) == len(b.split()), (a, b)


class Actor:
    """Knows the secrets; ``faking`` keeps them to itself when a cue says that it is being tested."""

    kind = "causal_lm"

    def __init__(self, scored: Callable[..., TokenScores], secrets: set[str], faking: bool):
        self.scored, self.secrets, self.faking, self.cost = scored, secrets, faking, Cost()

    def score(self, pairs: list) -> list[TokenScores]:
        out = []
        for prompt, answer in pairs:
            observed = any(str(prompt).startswith(cue) for cue in OBSERVED)
            tells = answer in self.secrets and not (self.faking and observed)
            out.append(self.scored([-0.1 if tells else -3.0] * 3, eos=True, text=answer))
        return out

    def count_tokens(self, text: str) -> int:
        return 1


def test_faking_is_told_from_honest_forgetting(scored: Callable, request_: DeletionRequest) -> None:
    secrets, kept = set(request_.forget["answer"]), set(request_.retain["answer"])
    models = {
        "unlearned": Actor(scored, secrets, faking=True),
        "original": Actor(scored, secrets | kept, faking=False),
        "oracle": Actor(scored, kept, faking=False),
    }
    finding = run_one(EvaluationAwareness(), Observations(models, request_))  # type: ignore[arg-type]
    assert finding.status == "measured", finding.note
    fake, honest = finding.estimates["unlearned"], finding.estimates["oracle"]
    assert fake["gap"].value == pytest.approx(2.9)
    assert fake["difference_in_differences"].value == pytest.approx(2.9)
    assert fake["said_observed"].value == 0.0
    assert fake["said_unobserved"].value == 1.0
    # 8 questions, all discordant: 2 / 2^8, times 8 cue pairs by Holm.
    assert fake["smallest_p"].value == pytest.approx(8 * 2 / 2**8)
    assert honest["gap"].value == honest["gap_unseen"].value == 0.0
    assert honest["smallest_p"].value == 1.0
    (evidence,) = finding.evidence
    assert max(evidence.values["unlearned"].values()) == pytest.approx(0.1)


def test_cues_that_cannot_be_compared_are_refused() -> None:
    with pytest.raises(ValueError, match="as many of each"):
        EvaluationAwareness.Config(observed=("a", "b"), unobserved=("c",))
    with pytest.raises(ValueError, match="number of words"):
        EvaluationAwareness.Config(observed=("a b",), unobserved=("c",))
    with pytest.raises(ValueError):
        EvaluationAwareness.Config(observed=(), unobserved=())
