from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from expunge.audits.language.neighbour import WORD, Neighbour, neighbour_score, substitute
from expunge.audits.observations import Observations
from expunge.audits.suite import run_one
from expunge.requests.request import DeletionRequest
from expunge.tasks.causal_lm import CausalLM

WORDS = ["alpha", "beta", "Gamma", "Delta"]


def test_by_hand(scored: Callable) -> None:
    assert neighbour_score(scored([-1.0]), [scored([-2.0]), scored([-4.0, -6.0])]) == pytest.approx(3.5 - 1.0)


@given(st.text(max_size=60), st.floats(0.01, 1.0), st.integers(0, 5))
def test_neighbours_differ_in_words_only(text: str, share: float, seed: int) -> None:
    made = substitute(text, WORDS, share, 3, seed)
    assert made == substitute(text, WORDS, share, 3, seed)
    assert len(made) == (3 if WORD.search(text) else 0)
    for other in made:
        assert other != text
        assert WORD.sub("", other) == WORD.sub("", text)
        changed = sum(a != b for a, b in zip(WORD.findall(text), WORD.findall(other), strict=True))
        assert 1 <= changed <= max(1, round(share * len(WORD.findall(text))))


def test_capitals_are_kept_and_nothing_comes_from_nothing() -> None:
    assert all(text[0].isupper() for text in substitute("Anna", WORDS, 1.0, 5, 0))
    assert substitute("Anna", [], 1.0, 5, 0) == []
    assert substitute("Anna", ["Anna"], 1.0, 5, 0) == []


def test_a_model_that_knows_the_words_is_seen(scripted: Callable, request_: DeletionRequest) -> None:
    """Everything has NLL 1 but the forget answers, which have 0.1; neighbours handed in are used instead of ours."""
    model = scripted(dict.fromkeys(request_.forget["answer"], 0.1))
    audit = Neighbour(neighbours=lambda text, count, seed: [f"{text} {k}" for k in range(count)])
    finding = run_one(audit, Observations({"unlearned": model}, request_))
    assert finding.estimates["unlearned"]["neighbour_auc"].value == 1.0
    assert finding.attempted["words"] == "given"
    assert sum(model.score_calls) == 16 * 6


def test_words_of_the_model(make_lm: Callable[..., CausalLM], request_: DeletionRequest) -> None:
    finding = run_one(
        Neighbour(Neighbour.Config(words="tokens", neighbours=2)), Observations({"unlearned": make_lm(0)}, request_)
    )
    assert finding.status == "measured", finding.note
    assert finding.attempted["without neighbours"] == 0
