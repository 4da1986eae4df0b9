from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from expunge.errors import Problem
from expunge.requests import DeletionRequest, example_id, preflight
from expunge.requests.preflight import normalised


class Words:
    """Counts words; a word of signs only is no token."""

    def __init__(self) -> None:
        self.prompts: list[object] = []

    def encode_lengths(
        self, prompts: Sequence[str | Sequence[Mapping[str, str]]], answers: Sequence[str]
    ) -> list[tuple[int, int]]:
        self.prompts += prompts
        texts = [p if isinstance(p, str) else " ".join(turn["content"] for turn in p) for p in prompts]
        return [
            (len(p.split()), sum(any(c.isalnum() for c in w) for w in a.split()))
            for p, a in zip(texts, answers, strict=True)
        ]


def examples(pairs: Sequence[tuple[str, str]], **columns: list[object]) -> Dataset:
    return Dataset.from_dict(
        {
            "id": [example_id({"prompt": p, "answer": a}) for p, a in pairs],
            "prompt": [p for p, _ in pairs],
            "answer": [a for _, a in pairs],
            **columns,
        }
    )


def many(letter: str, n: int = 8) -> list[tuple[str, str]]:
    return [(f"what is {letter}{i}", f"it is {letter}{i}") for i in range(n)]


def test_a_good_request_has_no_problems() -> None:
    request = DeletionRequest(forget=examples(many("f")), retain=examples(many("r")), holdout=examples(many("h")))
    assert preflight(request, Words(), max_length=7) == []


def test_near_overlap_is_an_error_with_both_places() -> None:
    forget = examples([*many("f"), ("Who is Ann?", "A cook.")])
    retain = examples([("who  is ann", "a COOK"), *many("r")])
    (problem,) = preflight(DeletionRequest(forget=forget, retain=retain))
    assert problem.severity == "error"
    assert problem.where == "forget and retain"
    assert "example 9 = example 1" in problem.what


def test_same_question_with_another_answer_is_a_warning() -> None:
    forget = examples([*many("f"), ("Who is Ann?", "A cook.")])
    retain = examples([("who is ann", "A judge."), *many("r")])
    (problem,) = preflight(DeletionRequest(forget=forget, retain=retain))
    assert problem.severity == "warning"
    # Raw texts all have the same, empty prompt.
    texts = DeletionRequest(
        forget=examples([("", f"f {i}") for i in range(8)]), retain=examples([("", f"r {i}") for i in range(8)])
    )
    assert preflight(texts) == []


def test_near_overlap_of_a_chat_with_the_same_plain_question() -> None:
    plain = examples([("Who is Ann?", "A cook."), *many("r")])
    chat = examples([("Who is Ann?", "A cook")], messages=[[{"role": "user", "content": "Who is Ann?"}]])
    longer = examples(
        [("Who?", "A cook")], messages=[[{"role": "user", "content": "Ann."}, {"role": "user", "content": "Who?"}]]
    )
    said = [p.where for p in preflight(DeletionRequest(forget=plain, retain=chat)) if p.severity == "error"]
    assert said == ["forget and retain"]
    assert not [p for p in preflight(DeletionRequest(forget=plain, retain=longer)) if p.severity == "error"]


@given(st.text())
def test_normalising_twice_changes_nothing(text: str) -> None:
    assert normalised(normalised(text)) == normalised(text)


@pytest.mark.parametrize(("one", "other", "same"), [("A-b!", "a B", True), ("1+1", "11", False), ("?", "!", False)])
def test_normalised(one: str, other: str, same: bool) -> None:
    assert (normalised(one) == normalised(other)) is same


def test_answers_that_tokenise_to_nothing_are_errors() -> None:
    retain = examples([*many("r"), ("q", "--")])
    (problem,) = preflight(DeletionRequest(forget=examples(many("f")), retain=retain), Words())
    assert (problem.severity, problem.where) == ("error", "retain, field 'answer'")
    assert "example 9" in problem.what


def test_examples_longer_than_the_context() -> None:
    # 3 + 4 tokens and the end-of-text token do not fit into 6: one answer token and the end are cut.
    forget = examples([*many("f"), ("a b c", "d e f g"), ("a b c d", "e f"), ("a b c d e f", "g")])
    found = preflight(DeletionRequest(forget=forget), Words(), max_length=6)
    lost, cut = found
    # 8 examples of 3 + 3 lose the end-of-text token only; so does the one of 4 + 2.
    assert cut.severity == "warning"
    assert "10 of 11 examples" in cut.what
    assert "the longest has 8" in cut.what
    assert "1 of 30 answer tokens" in cut.what
    assert lost.severity == "error"
    assert "1 of 11 examples" in lost.what
    assert "example 11" in lost.what
    assert preflight(DeletionRequest(forget=forget), Words(), max_length=8) == []


def test_chats_are_counted_by_their_turns() -> None:
    turns = [[{"role": "user", "content": "a b c d"}]] * 8
    counter = Words()
    forget = examples([("d", f"x{i}") for i in range(8)], messages=turns)
    assert "longest has 6" in preflight(DeletionRequest(forget=forget), counter, max_length=5)[0].what
    assert counter.prompts == turns


@pytest.mark.parametrize(("n", "warned"), [(1, True), (7, True), (8, False)])
def test_tiny_sets(n: int, warned: bool) -> None:
    found = preflight(DeletionRequest(forget=examples(many("f", n)), retain=examples(many("r"))))
    assert [(p.where, p.severity) for p in found] == ([("forget", "warning")] if warned else [])


def test_people_in_both_sets_matter_for_entities() -> None:
    forget = examples(many("f"), group=["ann"] * 4 + ["bob"] * 4)
    retain = examples(many("r"), group=["bob"] * 8)

    def found(scenario: str) -> list[Problem]:
        return preflight(DeletionRequest(forget=forget, retain=retain, scenario=scenario))  # type: ignore[arg-type]

    assert [p.severity for p in found("entity")] == ["warning"]
    assert "bob" in found("entity")[0].what
    assert found("examples") == []


def test_perturbed_answers_that_are_right() -> None:
    wrong = [["no", "it is f3."] if i == 3 else ["no", "never"] for i in range(8)]
    (problem,) = preflight(DeletionRequest(forget=examples(many("f"), perturbed_answers=wrong)))
    assert problem.severity == "warning"
    assert "1 example(s)" in problem.what
    assert "example 4" in problem.what
