from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from expunge.audits.language.rouge import Rouge, count_words, is_empty, rouge_l
from expunge.audits.observations import Observations
from expunge.audits.suite import run_one
from expunge.requests.request import DeletionRequest


def test_rouge_by_hand() -> None:
    """Reference "the cat sat on the mat" (6 words), prediction "the cats sat" (3): stemmed, "the cat sat" is common.

    Recall 3/6, precision 3/3, F1 = 2 * 0.5 * 1 / 1.5 = 2/3.
    """
    score = rouge_l("the cats sat", "the cat sat on the mat")
    assert score.recall == pytest.approx(0.5)
    assert score.f1 == pytest.approx(2 / 3)


def test_order_counts() -> None:
    """Common subsequence of "a b c" and "c b a" has one word."""
    assert rouge_l("c b a", "a b c").recall == pytest.approx(1 / 3)


@given(st.text(max_size=30), st.text(max_size=30))
def test_rouge_stays_in_range_and_f1_is_symmetric(one: str, other: str) -> None:
    score = rouge_l(one, other)
    assert 0 <= score.f1 <= 1
    assert 0 <= score.recall <= 1
    assert rouge_l(other, one).f1 == pytest.approx(score.f1)
    assert rouge_l(one, one).recall == (1.0 if count_words(one) else 0.0)


def test_other_scripts_have_words_where_asked() -> None:
    assert count_words("東京です") == 0
    assert count_words("東京です", "unicode") == 4
    assert count_words("Привет, мир snake_case", "unicode") == 4
    assert rouge_l("東京", "東京です", "unicode").recall == pytest.approx(0.5)


@pytest.mark.parametrize(("text", "empty"), [("", True), (" \n", True), ("...!?", True), ("no", False), ("東", False)])
def test_empty_means_no_letter_or_digit(text: str, empty: bool) -> None:
    assert is_empty(text) is empty


def run(scripted: Callable, request: DeletionRequest, says: dict[str, str], words: str = "latin"):
    seen = Observations({"unlearned": scripted(says=says), "oracle": scripted()}, request)
    return run_one(Rouge(Rouge.Config(words=words)), seen)


def test_an_empty_answer_is_no_sign_of_forgetting(scripted: Callable, make_examples: Callable) -> None:
    """Of 4 forget answers one is empty and three are right: the mean is over the three, 1.0, and the empty one is told.

    The same on the retain set is damage: 3/4.
    """
    request = DeletionRequest(make_examples(range(2)), make_examples(range(5, 7)))
    says = {}
    for examples in (request.forget, request.retain):
        says |= dict(zip(examples["prompt"], examples["answer"], strict=True))
        says[examples["prompt"][0]] = " ..."
    finding = run(scripted, request, says)
    estimates = finding.estimates["unlearned"]
    assert estimates["forget_rouge_recall"].value == 1.0
    assert estimates["forget_rouge_recall"].n == 3
    assert estimates["retain_rouge_recall"].value == pytest.approx(0.75)
    for role in ("forget", "retain"):
        assert estimates[f"{role}_empty_generations"].value == 1
        assert estimates[f"{role}_empty_generations"].n == 4
    assert "1 empty generations of unlearned on forget" in finding.note
    assert request.forget["id"][0] not in finding.evidence[0].values["unlearned"]
    assert finding.evidence[1].values["unlearned"][request.retain["id"][0]] == 0.0


def test_an_oracle_that_says_nothing_is_what_never_having_known_sounds_like(
    scripted: Callable, make_examples: Callable
) -> None:
    request = DeletionRequest(make_examples(range(2)))
    first = request.forget["id"][0]
    oracle = scripted(says={request.forget["prompt"][0]: "."})
    finding = run_one(Rouge(), Observations({"unlearned": scripted(), "oracle": oracle}, request))
    assert finding.estimates["oracle"]["forget_rouge_recall"].n == len(request.forget) - 1
    values = finding.evidence[0].values
    assert values["oracle"][first] == 0.0
    assert values["oracle"].keys() == values["unlearned"].keys() == set(request.forget["id"])


def test_all_empty_is_no_value(scripted: Callable, make_examples: Callable) -> None:
    request = DeletionRequest(make_examples(range(2)))
    finding = run(scripted, request, dict.fromkeys(request.forget["prompt"], ""))
    estimate = finding.estimates["unlearned"]["forget_rouge_recall"]
    assert estimate.value is None
    assert "empty" in estimate.note
    assert finding.evidence[0].values["unlearned"] == {}


def test_answers_without_countable_words_are_told(scripted: Callable, make_examples: Callable) -> None:
    request = DeletionRequest(make_examples(range(1)).map(lambda row: {"answer": "東京"}))
    assert "words=unicode" in run(scripted, request, {}).note
    assert run(scripted, request, {}).estimates["unlearned"]["forget_rouge_recall"].value is None
    assert run(scripted, request, {}, "unicode").estimates["unlearned"]["forget_rouge_recall"].value == 0.0


def test_raw_text_has_nothing_to_continue(scripted: Callable, make_examples: Callable) -> None:
    request = DeletionRequest(make_examples(range(1)).map(lambda row: {"prompt": ""}))
    assert run(scripted, request, {}).status == "no data"
