from __future__ import annotations

from collections.abc import Callable

import pytest

from expunge.audits.language.ununlearning import Ununlearning, premises_of, recovery, same_length
from expunge.audits.observations import Observations
from expunge.audits.prober import Case
from expunge.audits.suite import run_one
from expunge.requests.request import DeletionRequest
from expunge.tasks.causal_lm import CausalLM
from expunge.tasks.cost import Cost
from expunge.tasks.tokens import TokenScores


def test_recovery_by_hand() -> None:
    assert recovery(0.5, 0.1, 0.9) == pytest.approx(0.5)
    assert recovery(0.1, 0.1, 0.9) == 0.0
    assert recovery(0.5, 0.88, 0.9) is None


def test_same_length() -> None:
    assert same_length("a b c", "one two") == "a b"
    assert same_length("a b", "one two three four five") == "a b a b a"


def test_premises_must_not_hold_the_answer() -> None:
    def case(premises: object) -> Case:
        row = {"premises": premises, "value": "Velburg"}
        return Case("i", "forget", "q", "q", "She was born in Velburg.", "", row)

    assert premises_of(case(["She was born where salt is mined.", "Salt is mined in one town."]))
    assert premises_of(case("Salt is mined in Velburg.")) == ""
    assert premises_of(case("Salt is mined in VELBURG.")) == ""
    assert premises_of(case(None)) == ""


class Reader:
    """Answers from the context; ``hint`` is what makes it remember."""

    kind = "causal_lm"

    def __init__(self, scored: Callable[..., TokenScores], hint: str = "", knows: bool = False):
        self.scored, self.hint, self.knows, self.cost = scored, hint, knows, Cost()

    def score(self, pairs: list) -> list[TokenScores]:
        out = []
        for prompt, answer in pairs:
            read = answer in str(prompt) or str(answer).replace("in ", "It is in ") in str(prompt)
            sure = read or self.knows or (self.hint and self.hint in str(prompt))
            out.append(self.scored([-0.05 if sure else -2.0] * 3, eos=True, text=answer))
        return out

    def count_tokens(self, text: str) -> int:
        return len(text.split())


def test_related_facts_that_hold_the_answer_are_left_out(
    make_lm: Callable[..., CausalLM], request_: DeletionRequest
) -> None:
    """Where somebody works in the town of their birth, the one answer holds the other."""
    audit = Ununlearning()
    probes = audit.probes(Observations({"unlearned": make_lm(0)}, request_))
    asked = [prompt for prompt, _ in probes["forget", "related"].values()]
    assert len(asked) == 4
    assert all("born" in str(prompt).split("in ")[0] for prompt in asked)


def with_premises(request: DeletionRequest) -> DeletionRequest:
    def add(row: dict) -> dict:
        return {"premises": ["The salt road ends there."]}

    return DeletionRequest(request.forget.map(add), request.retain, request.holdout.map(add))


def test_reading_does_not_count_and_remembering_does(scored: Callable, request_: DeletionRequest) -> None:
    """Both models read; only the unlearned one remembers at the premises."""
    models = {
        "unlearned": Reader(scored, "salt road"),
        "original": Reader(scored, knows=True),
        "oracle": Reader(scored),
    }
    finding = run_one(Ununlearning(), Observations(models, with_premises(request_)))  # type: ignore[arg-type]
    assert finding.status == "measured", finding.note
    e = finding.estimates["unlearned"]
    assert e["recovery_definition"].value == pytest.approx(1.0)
    assert e["excess_definition"].value == 0.0
    assert finding.estimates["oracle"]["recovery_definition"].value == pytest.approx(1.0)
    assert e["recovery_premises"].value == pytest.approx(1.0)
    assert finding.estimates["oracle"]["recovery_premises"].value == 0.0
    assert e["excess_premises"].value == pytest.approx(0.951 - 0.135, abs=2e-3)
    assert finding.attempted["counted"] == ["premises"]
    (evidence,) = finding.evidence
    assert max(evidence.values["unlearned"].values()) == pytest.approx(0.05)
    assert min(evidence.values["oracle"].values()) == pytest.approx(2.0)


def test_without_premises_that_family_has_no_data(make_lm: Callable[..., CausalLM], request_: DeletionRequest) -> None:
    finding = run_one(Ununlearning(), Observations({"unlearned": make_lm(0)}, request_))
    assert finding.status == "measured", finding.note
    assert finding.estimates["unlearned"]["probability_premises"].value is None
    assert "original" in finding.estimates["unlearned"]["recovery_definition"].note


def test_nothing_irrelevant_to_compare_with(make_lm: Callable[..., CausalLM], request_: DeletionRequest) -> None:
    finding = run_one(Ununlearning(), Observations({"unlearned": make_lm(0)}, DeletionRequest(request_.forget)))
    assert finding.status == "no data"
    assert "retain" in finding.note
