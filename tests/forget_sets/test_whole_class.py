from __future__ import annotations

from typing import Any

import pytest
from datasets import Dataset

from expunge.errors import BadInput
from expunge.forget_sets.select import select_forget_set


@pytest.mark.parametrize("labels", [1, "1", ["1"]])
def test_a_class_by_name_or_index(labels: Any, examples: Dataset) -> None:
    found = select_forget_set(examples, "class", settings={"labels": labels}, unseen=examples.select([])).request
    assert set(found.forget["label"]) == {"1"}
    assert found.scenario == "class"
    assert len(found.forget) + len(found.retain) == len(examples)  # type: ignore[arg-type]


def test_the_holdout_set_is_what_there_is_of_the_class(examples: Dataset) -> None:
    unseen = Dataset.from_dict({"id": ["p", "q"], "image": [[[0.0]], [[0.0]]], "label": ["1", "2"]})
    found = select_forget_set(examples, "class", settings={"labels": 1}, unseen=unseen).request
    assert found.holdout is not None
    assert list(found.holdout["id"]) == ["p"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "names no class"),
        ({"labels": "7"}, "7 is not there"),
        ({"labels": ["7", "8"]}, "7; 8 are not there"),
        ({"labels": ["1", "1"]}, "repeats a class"),
        ({"labels": ["0", "1"]}, "1 would be left, nothing to tell apart"),
        ({"labels": ["0", "1", "2"]}, "0 would be left"),
        ({"labels": 1.5}, "labels"),
        ({"lables": "1"}, "labels"),
    ],
)
def test_what_cannot_be_is_one_message(settings: dict[str, Any], words: str, examples: Dataset) -> None:
    with pytest.raises(BadInput) as caught:
        select_forget_set(examples, "class", settings=settings)
    assert words in str(caught.value)
    assert len(caught.value.problems) == 1
