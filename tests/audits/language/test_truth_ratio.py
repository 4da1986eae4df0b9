from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from expunge.audits.language.truth_ratio import (
    TruthRatio,
    forget_score,
    log_truth_ratio,
    log_truth_ratios,
    retain_score,
    truth_ratio,
)
from expunge.audits.observations import Observations
from expunge.audits.suite import run_one
from expunge.requests.request import DeletionRequest

NLL = st.floats(0.0, 50.0)


def test_truth_ratio_by_hand(scored: Callable) -> None:
    """Correct answer p = 1/2 per token; wrong ones 1/4 and 1/16.

    Geometric: sqrt(1/4 * 1/16) / (1/2) = (1/8) / (1/2) = 0.25. Arithmetic: (1/4 + 1/16) / 2 / (1/2) = 0.3125.
    """
    correct = scored([math.log(1 / 2)] * 3)
    wrong = [scored([math.log(1 / 4)] * 2), scored([math.log(1 / 16)] * 5)]
    assert truth_ratio(correct, wrong) == pytest.approx(0.25)
    assert truth_ratio(correct, wrong, mean="arithmetic") == pytest.approx(0.3125)


def test_scores_by_hand() -> None:
    """R = 1/4: min(R, 1/R) = 1/4 and max(0, 1 - R) = 3/4. R = 4: 1/4 and 0."""
    assert forget_score(math.log(0.25)) == forget_score(math.log(4)) == pytest.approx(0.25)
    assert retain_score(math.log(0.25)) == pytest.approx(0.75)
    assert retain_score(math.log(4)) == 0.0


@given(NLL, st.lists(NLL, min_size=1, max_size=6), st.floats(0.0, 1e4), st.sampled_from(["geometric", "arithmetic"]))
def test_a_common_factor_cancels(correct: float, wrong: list[float], shift: float, mean: str) -> None:
    plain = log_truth_ratio(correct, wrong, mean)  # type: ignore[arg-type]
    moved = log_truth_ratio(correct + shift, [w + shift for w in wrong], mean)  # type: ignore[arg-type]
    assert moved == pytest.approx(plain, abs=1e-8)


@given(NLL, st.lists(NLL, min_size=1, max_size=6))
def test_geometric_is_at_most_arithmetic(correct: float, wrong: list[float]) -> None:
    assert log_truth_ratio(correct, wrong) <= log_truth_ratio(correct, wrong, "arithmetic") + 1e-9


@given(st.floats(-1e4, 1e4))
def test_scores_stay_in_range(log_ratio: float) -> None:
    assert 0 <= forget_score(log_ratio) <= 1
    assert 0 <= retain_score(log_ratio) <= 1


def test_no_wrong_answer_is_an_error() -> None:
    with pytest.raises(ValueError):
        log_truth_ratio(1.0, [])


def test_values_are_joined_by_id(scripted: Callable, make_examples: Callable) -> None:
    """The first example has no wrong answers, so it has no value; the others keep their own.

    Scripted NLLs: paraphrase 1, all wrong answers 2 except one of 5 for the last example: 1 - (2 + 2 + 5) / 3 = -2.
    """
    rows = make_examples(range(2)).to_list()
    rows[0]["perturbed_answers"] = None
    rows[3]["perturbed_answers"][2] = "odd one"
    from datasets import Dataset

    request = DeletionRequest(Dataset.from_list(rows))
    nll = {w: 2.0 for row in rows for w in row["perturbed_answers"] or ()} | {"odd one": 5.0}
    nll |= {row["paraphrased_answer"]: 1.0 for row in rows}
    logs = log_truth_ratios(Observations({"unlearned": scripted(nll)}, request), "unlearned", "forget")
    assert logs == pytest.approx({rows[1]["id"]: -1.0, rows[2]["id"]: -1.0, rows[3]["id"]: -2.0})


def test_the_correct_answer_is_the_same_kind_for_all_and_told(scripted: Callable, make_examples: Callable) -> None:
    rows = make_examples(range(2)).to_list()
    rows[2]["paraphrased_answer"] = None
    from datasets import Dataset

    seen = Observations({"unlearned": scripted()}, DeletionRequest(Dataset.from_list(rows)))
    finding = run_one(TruthRatio(), seen)
    assert finding.attempted["correct answer"] == {"forget": "answer"}
    strict = run_one(TruthRatio(TruthRatio.Config(correct="paraphrased_answer")), seen)
    assert strict.attempted["examples"] == {"forget": 3}


def test_holdout_is_scored_only_where_no_oracle_is(scripted: Callable, request_: DeletionRequest) -> None:
    alone = Observations({"unlearned": scripted()}, request_)
    beside = Observations({"unlearned": scripted(), "oracle": scripted()}, request_)
    assert ("holdout", "perturbed_answers") in TruthRatio().reading(alone)
    assert not [role for role, _ in TruthRatio().reading(beside) if role == "holdout"]
    assert run_one(TruthRatio(), alone).evidence[0].control["unlearned"]
    assert run_one(TruthRatio(), beside).evidence[0].control == {}


def test_knowing_models_are_low(scripted: Callable, request_: DeletionRequest) -> None:
    knows = scripted({row["paraphrased_answer"]: 0.1 for row in request_.forget.to_list()})
    finding = run_one(TruthRatio(), Observations({"unlearned": scripted(), "original": knows}, request_))
    (evidence,) = finding.evidence
    assert evidence.knowing_is == "low"
    assert np.mean(list(evidence.values["original"].values())) < np.mean(list(evidence.values["unlearned"].values()))
    assert finding.estimates["unlearned"]["forget_truth_ratio"].value == pytest.approx(1.0)
    assert finding.estimates["original"]["forget_truth_ratio"].value == pytest.approx(math.exp(-0.9))


@given(NLL, st.lists(NLL, min_size=1, max_size=6), st.sampled_from(["geometric", "arithmetic"]))
def test_parity_adds_to_the_denominator(correct: float, wrong: list[float], mean: str) -> None:
    over = math.exp(-sum(wrong) / len(wrong))
    if mean == "arithmetic":
        over = sum(math.exp(-w) for w in wrong) / len(wrong)
    expected = over / (math.exp(-correct) + 1e-10)
    found = log_truth_ratio(correct, wrong, mean, parity=True)  # type: ignore[arg-type]
    assert math.exp(found) == pytest.approx(expected, rel=1e-9)


def test_parity_takes_a_model_that_fell_apart_for_one_that_prefers_the_truth(
    scripted: Callable, request_: DeletionRequest
) -> None:
    rows = request_.forget.to_list()
    texts = [t for row in rows for t in (row["paraphrased_answer"], *row["perturbed_answers"])]
    seen = Observations({"unlearned": scripted(dict.fromkeys(texts, 40.0))}, request_)
    found = [
        run_one(TruthRatio(TruthRatio.Config(parity=p)), seen).estimates["unlearned"]["forget_truth_ratio"].value
        for p in (False, True)
    ]
    assert found[0] == pytest.approx(1.0)
    assert found[1] == pytest.approx(math.exp(-40) / 1e-10, rel=1e-5)
