from __future__ import annotations

from collections.abc import Callable

from datasets import Dataset

from expunge.audits.language.verifier import VerifierAudit, claims_of
from expunge.audits.observations import Observations
from expunge.audits.suite import run_one
from expunge.audits.verification import IRRELEVANT, RIGHT, WRONG
from expunge.data.fictitious import FictitiousWorld
from expunge.requests.request import DeletionRequest

WORLD = FictitiousWorld(24, relations=("birth_city", "profession", "pet", "instrument"))
REQUEST = WORLD.split(0.2, 0.2)


def test_claims_are_what_they_are_called() -> None:
    rows = REQUEST.retain.to_list()
    made = claims_of(rows[:5], rows, 0)
    assert made == claims_of(rows[:5], rows[::-1][::-1], 0)
    told = {row["answer"] for row in rows[:5]} | {row["paraphrased_answer"] for row in rows[:5]}
    told |= {row["value"] for row in rows[:5]}
    for claim, label in made:
        assert (claim.answer in told and label == RIGHT) or label in (WRONG, IRRELEVANT)
        if label == IRRELEVANT:
            own = next(row for row in rows if row["prompt"] == claim.question)
            other = next(row for row in rows if row["answer"] == claim.knowledge)
            assert own["group"] != other["group"]


def says(request: DeletionRequest, column: str) -> dict[str, str]:
    out = {}
    for examples in request.sets().values():
        for row in examples.to_list():
            value = row[column]
            out[row["prompt"]] = value if isinstance(value, str) else value[0]
    return out


def test_it_sees_through_wording_and_through_shared_words(scripted: Callable) -> None:
    """A paraphrase shares fewer words with the true answer than a wrong answer of the same form does."""
    wrong = says(REQUEST, "perturbed_answers")
    seen = Observations(
        {
            "unlearned": scripted(says=wrong),
            "original": scripted(says=says(REQUEST, "paraphrased_answer")),
            "oracle": scripted(says=dict.fromkeys(wrong, " . ")),
        },
        REQUEST,
    )
    finding = run_one(VerifierAudit(), seen)
    assert finding.status == "measured", finding.note
    assert finding.attempted["accuracy"] > 0.9
    assert finding.estimates["unlearned"]["verifier_accuracy"].value == finding.attempted["accuracy"]
    assert finding.estimates["unlearned"]["forget_right"].value < 0.2
    assert finding.estimates["original"]["forget_right"].value > 0.8
    # nothing said is no knowledge either way, but damage where the answer was to be kept
    assert finding.estimates["oracle"]["forget_right"].value is None
    assert finding.estimates["oracle"]["forget_empty_answers"].value == len(REQUEST.forget)
    assert finding.estimates["oracle"]["retain_right"].value == 0.0


def test_too_few_rows_or_too_poor_a_verifier_is_refused(scripted: Callable) -> None:
    few = DeletionRequest(REQUEST.forget, REQUEST.retain.select(range(8)))
    finding = run_one(VerifierAudit(), Observations({"unlearned": scripted()}, few))
    assert finding.status == "no data"
    assert "too few" in finding.note
    rows = REQUEST.retain.to_list()
    # paraphrases that are none: right and wrong answers cannot be told apart
    muddled = [
        {**row, "paraphrased_answer": rows[k - 9]["answer"], "value": rows[k - 5]["answer"]}
        for k, row in enumerate(rows)
    ]
    poor = DeletionRequest(REQUEST.forget, Dataset.from_list(muddled))
    strict = VerifierAudit(VerifierAudit.Config(least_accuracy=0.97))
    refused = run_one(strict, Observations({"unlearned": scripted()}, poor))
    assert refused.status == "no data"
    assert "not trained on" in refused.note
