from __future__ import annotations

import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from expunge.errors import BadInput
from expunge.requests import DeletionRequest, example_id, request_problems


def examples(*answers: str, **columns: list[object]) -> Dataset:
    ids = [example_id({"prompt": "q", "answer": a}) for a in answers]
    return Dataset.from_dict({"id": ids, "prompt": ["q"] * len(ids), "answer": list(answers), **columns})


@given(st.dictionaries(st.text(), st.text(), min_size=1), st.randoms())
def test_id_does_not_depend_on_the_order_of_fields(content: dict[str, str], random: object) -> None:
    items = list(content.items())
    random.shuffle(items)  # type: ignore[attr-defined]
    assert example_id(dict(items)) == example_id(content)
    assert example_id({**content, "more": "x"}) != example_id({**content, "more": "y"})


def test_fingerprint_depends_on_content_and_role_not_on_order() -> None:
    one = DeletionRequest(forget=examples("a", "b"), retain=examples("c"))
    assert DeletionRequest(forget=examples("b", "a"), retain=examples("c")).fingerprint == one.fingerprint
    assert DeletionRequest(forget=examples("a", "b"), holdout=examples("c")).fingerprint != one.fingerprint
    assert DeletionRequest(forget=examples("a", "c"), retain=examples("b")).fingerprint != one.fingerprint


def test_all_problems_come_at_once() -> None:
    with pytest.raises(BadInput) as caught:
        DeletionRequest(
            forget=examples("a", "a", "b", "c"),
            retain=examples("b", "d"),
            holdout=examples("c", "d"),
            scenario="people",  # type: ignore[arg-type]
            known_fraction=0.0,
        )
    places = {problem.where for problem in caught.value.problems}
    assert places == {
        "scenario",
        "known_fraction",
        "forget",
        "forget and retain",
        "forget and holdout",
        "retain and holdout",
    }


def test_overlap_names_file_and_line_of_both_sides() -> None:
    forget = examples("a", "b", source_file=["f.jsonl"] * 2, source_line=[3, 7])
    retain = examples("x", "b", source_file=["r.parquet"] * 2, source_line=[1, 2])
    (problem,) = request_problems({"forget": forget, "retain": retain})
    assert "f.jsonl line 7 = r.parquet row 2" in problem.what
    assert "1 example" in problem.what


def test_long_overlap_is_counted_and_shortened() -> None:
    answers = [str(i) for i in range(30)]
    (problem,) = request_problems({"forget": examples(*answers), "retain": examples(*answers)})
    assert "share 30" in problem.what
    assert problem.what.count(" = ") == 5
    assert "25 more" in problem.what


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ([{"id": "a"}], "is a list, not a Dataset"),
        (Dataset.from_dict({"prompt": ["q"]}), "no column 'id'"),
        (Dataset.from_dict({"id": []}), "is empty"),
        (Dataset.from_dict({"id": [1]}), "which is not text"),
        (Dataset.from_dict({"id": [None]}), "which is not text"),
    ],
)
def test_sets_that_cannot_be_used(wrong: object, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        DeletionRequest(forget=wrong)  # type: ignore[arg-type]
