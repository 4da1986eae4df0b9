"""Requests made of training sets: disjoint, complete, and the same whatever the order of the set."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from expunge.data import scenarios
from expunge.errors import BadInput
from expunge.requests.request import DeletionRequest


def rows(count: int = 20, start: int = 0) -> Dataset:
    return Dataset.from_list(
        [
            {"id": f"e{i}", "label": "abc"[i % 3], "target": float(i), "group": f"g{i % 2}", "corrupted": i % 5 == 0}
            for i in range(start, start + count)
        ]
    )


TRAIN, UNSEEN = rows(), rows(12, 100)
MAKERS: dict[str, Callable[[Dataset], DeletionRequest]] = {
    "examples": lambda t: scenarios.random_examples(t, 0.25, 3, unseen=UNSEEN),
    "class": lambda t: scenarios.whole_class(t, "b", unseen=UNSEEN),
    "group": lambda t: scenarios.subgroup(t, "g1", unseen=UNSEEN),
    "range": lambda t: scenarios.value_range(t, 5, 9, unseen=UNSEEN),
    "corrupted": lambda t: scenarios.corrupted(t, 0.5, 1, unseen=UNSEEN),
}


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_it_is_what_it_says_and_nothing_is_lost(name: str) -> None:
    request = MAKERS[name](TRAIN)
    assert request.scenario == name
    assert request.retain is not None
    assert sorted([*request.forget["id"], *request.retain["id"]]) == sorted(TRAIN["id"])
    turned = MAKERS[name](TRAIN.select(range(len(TRAIN) - 1, -1, -1)))
    assert turned.fingerprint == request.fingerprint


def test_the_holdout_is_what_is_like_the_forget_set() -> None:
    assert len(MAKERS["examples"](TRAIN).holdout) == 12  # type: ignore[arg-type]
    assert set(MAKERS["class"](TRAIN).holdout["label"]) == {"b"}  # type: ignore[index]
    assert set(MAKERS["group"](TRAIN).holdout["group"]) == {"g1"}  # type: ignore[index]
    assert MAKERS["range"](TRAIN).holdout is None, "no unseen example lies in the range"


def test_a_class_is_gone_whole_and_a_range_is_half_open() -> None:
    request = MAKERS["class"](TRAIN)
    assert set(request.forget["label"]) == {"b"}
    assert "b" not in set(request.retain["label"])  # type: ignore[index]
    assert list(MAKERS["range"](TRAIN).forget["target"]) == [5, 6, 7, 8]


def test_only_a_fraction_of_the_corrupted_is_named_and_the_rest_stays_in() -> None:
    request = MAKERS["corrupted"](TRAIN)
    assert request.known_fraction == 0.5
    assert all(request.forget["corrupted"])
    assert sum(request.retain["corrupted"]) == 2  # type: ignore[index]


@given(st.integers(0, 20), st.integers(0, 1000))
def test_draws_are_of_the_size_asked_for_and_follow_the_ids(count: int, seed: int) -> None:
    found = scenarios.drawn(TRAIN, count, seed)
    assert len(set(found)) == count
    turned = TRAIN.select(range(19, -1, -1))
    assert {TRAIN[i]["id"] for i in found} == {turned[i]["id"] for i in scenarios.drawn(turned, count, seed)}


def test_a_class_may_be_named_as_it_is_written() -> None:
    numbered = Dataset.from_dict({"id": ["a", "b"], "label": [3, 4]})
    assert scenarios.whole_class(numbered, "3").forget["label"] == [3]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: scenarios.whole_class(TRAIN, "z"), "'z' is not there -> there are a; b; c"),
        (lambda: scenarios.whole_class(TRAIN.filter(lambda r: r["label"] == "a"), "a"), "nothing would be left"),
        (lambda: scenarios.random_examples(TRAIN, 1.0, 0), "20 of 20"),
        (lambda: scenarios.random_examples(TRAIN, float("nan"), 0), "share"),
        (lambda: scenarios.value_range(TRAIN, 50, 60), "holds 0 of 20 examples; values lie between 0 and 19"),
        (lambda: scenarios.subgroup(TRAIN, "x", column="town"), "column 'town': is not there"),
        (lambda: scenarios.corrupted(TRAIN, 0.0, 0), "names 0 of 4 corrupted"),
        (lambda: scenarios.corrupted(TRAIN, 0.01, 0), "names 0 of 4 corrupted"),
    ],
)
def test_what_cannot_be_is_said(make: Callable[[], object], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        make()
