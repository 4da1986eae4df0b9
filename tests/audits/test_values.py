from __future__ import annotations

from collections.abc import Callable

import pytest

from expunge.audits.observations import Observations
from expunge.audits.values import Values
from expunge.errors import BrokenScores
from expunge.requests.request import DeletionRequest


@pytest.fixture
def seen(scripted: Callable, request_: DeletionRequest) -> Observations:
    return Observations({"unlearned": scripted(), "oracle": scripted()}, request_)


def test_a_number_that_is_none_is_refused_with_its_place(seen: Observations) -> None:
    with pytest.raises(
        BrokenScores, match=r"nll of model 'oracle' is NaN or infinite for 1 of 2 examples of 'forget'.*b"
    ):
        Values(seen).add("oracle", "forget", "nll", {"a": 1.0, "b": float("nan")})


def test_nothing_is_no_value(seen: Observations) -> None:
    estimate = Values(seen).mean("unlearned", "forget", "nll")
    assert estimate.value is None
    assert estimate.note


def test_evidence_keeps_examples_that_every_model_has(seen: Observations) -> None:
    ids, values = seen.request.forget["id"], Values(seen)
    many = {f"{k}": 1.0 for k in range(39)}
    values.add("unlearned", "forget", "x", many)
    values.add("oracle", "forget", "x", {**many, "extra": 1.0})
    (evidence,) = values.evidence("x", "forget", "high")
    assert "extra" not in evidence.values["oracle"]
    assert set(evidence.groups) == set(ids)


def test_evidence_hands_on_what_cannot_be_compared(seen: Observations) -> None:
    """1 of 4 examples is missing under one model: more than a twentieth, so the verdict must see it."""
    values = Values(seen)
    values.add("unlearned", "forget", "x", {"a": 1.0, "b": 1.0, "c": 1.0})
    values.add("oracle", "forget", "x", {"a": 1.0, "b": 1.0, "c": 1.0, "d": 1.0})
    (evidence,) = values.evidence("x", "forget", "high")
    assert set(evidence.values["oracle"]) == {"a", "b", "c", "d"}
    values.add("unlearned", "forget", "y", {})
    values.add("oracle", "forget", "y", {"a": 1.0})
    (evidence,) = values.evidence("y", "forget", "high")
    assert evidence.values["unlearned"] == {}
    assert Values(seen).evidence("z", "forget", "high") == []


def test_holdout_is_the_control_of_forgetting_only(seen: Observations) -> None:
    values = Values(seen)
    for role in ("forget", "retain", "holdout"):
        for model in seen.models:
            values.add(model, role, "x", {role: 1.0})
    assert set(values.evidence("x", "forget", "low")[0].control["oracle"]) == {"holdout"}
    assert values.evidence("x", "retain", "low")[0].control == {}
    assert values.per_example()["oracle"]["retain"] == {"x": 1.0}


@pytest.mark.parametrize(
    ("scenario", "has"), [("examples", True), ("entity", True), ("class", False), ("range", False)]
)
def test_unseen_examples_are_no_control_where_who_saw_a_class_knows_them(
    scripted: Callable, request_: DeletionRequest, scenario: str, has: bool
) -> None:
    asked = DeletionRequest(request_.forget, request_.retain, request_.holdout, scenario=scenario)  # type: ignore[arg-type]
    values = Values(Observations({"unlearned": scripted()}, asked))
    values.add("unlearned", "forget", "x", {"a": 1.0})
    values.add("unlearned", "holdout", "x", {"b": 1.0})
    (evidence,) = values.evidence("x", "forget", "high")
    assert bool(evidence.control) is has
