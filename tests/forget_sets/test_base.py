"""What is taken of scores, and which sizes are refused."""

from __future__ import annotations

from typing import Any

import pytest
from datasets import Dataset

from expunge.errors import BadInput
from expunge.forget_sets.base import FORGET_SETS, Choice, ForgetSetSelector, SizedConfig, Units, take

ROWS = Dataset.from_dict({"id": list("abcdef"), "label": ["x", "x", "y", "y", "y", "z"], "x": range(6)})


def problems(config: dict[str, Any], train: Dataset = ROWS, selector: str = "random") -> str:
    chosen: ForgetSetSelector = FORGET_SETS.get(selector)(FORGET_SETS.get(selector).Config(**config))
    return "\n".join(map(str, chosen.problems(train, None)))


def test_units_are_examples_or_classes() -> None:
    assert Units.read(ROWS, "example").names == list("abcdef")
    classes = Units.read(ROWS, "class")
    assert (classes.names, classes.of) == (["x", "y", "z"], [0, 0, 1, 1, 1, 2])


def test_the_highest_scores_are_taken_and_ties_are_decided_by_the_second_score_then_the_name() -> None:
    units = Units("example", ["d", "c", "b", "a"], range(4))
    assert take(Choice([1, 3, 3, 0], [0, 1, 2, 0]), units, 3) == [2, 1, 0]
    assert take(Choice([1, 1, 1, 1]), units, 2) == [3, 2]


def test_no_class_loses_its_last_example() -> None:
    units = Units("example", list("abc"), range(3))
    assert take(Choice([3, 2, 1]), units, 2, ["x", "x", "y"]) == [0]
    assert take(Choice([3, 2, 1]), units, 2) == [0, 1]


def test_scores_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(BadInput, match="not numbers"):
        take(Choice([1.0, float("nan")]), Units("example", ["a", "b"], range(2)), 1)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"share": 0.5, "count": 3}, "share and count: are both given"),
        ({"share": 0.01}, "share: is 0.01, which is 0 of 6 examples: nothing to forget"),
        ({"count": 6}, "count: is 6, which is 6 of 6 examples: nothing would be left"),
        ({"count": 4}, "2 would be left for 3 classes, so that one is emptied"),
        ({"count": 3, "unit": "class"}, "3 of 3 classes: nothing would be left"),
        ({"count": 2, "unit": "class"}, "one class would be left"),
    ],
)
def test_a_size_that_cannot_be_is_one_message(config: dict[str, Any], words: str) -> None:
    found = problems(config)
    assert words in found
    assert len(found.splitlines()) == 1


def test_sizes_that_can_be_are_not_refused() -> None:
    assert not problems({"count": 3})
    assert not problems({"count": 1, "unit": "class"})
    assert not problems({"share": 0.8}, Dataset.from_dict({"id": list("abcdef"), "target": [1.0] * 6}))


def test_classes_need_labels() -> None:
    assert "has no column 'label'" in problems({"unit": "class"}, ROWS.remove_columns("label"))


def test_a_tenth_is_taken_if_nothing_is_said() -> None:
    chosen = FORGET_SETS.get("random")(SizedConfig())
    assert chosen.count(Units("example", [str(i) for i in range(50)], range(50))) == 5
