"""Classes and numbers: encoded, restored, and refused where they cannot be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from expunge.errors import BadInput
from expunge.tasks.outcomes import Classes, Numbers, outcome_of


def test_names_and_indices_mean_the_same_class() -> None:
    classes = Classes(("ant", "bee"))
    for labels in (["bee", "ant"], [1, 0]):
        assert classes.encode(Dataset.from_dict({"label": labels})).tolist() == [1, 0]
    assert classes.index(True) is None
    assert classes.index(-1) is None


@pytest.mark.parametrize("labels", [["bee", "dog"], [0, 2], [0, -1], [0, None], [[0], [1]], [True, False]])
def test_unknown_labels_are_refused_by_place(labels: list[object]) -> None:
    with pytest.raises(BadInput, match=r"\d example\(s\) have a label .*example 2\)"):
        Classes(("ant", "bee")).encode(Dataset.from_dict({"label": labels}))


@pytest.mark.parametrize(
    ("names", "labels", "expected"),
    [
        (("3", "4", "8"), ["8", "3"], [2, 0]),
        (("3", "4", "8"), [8, 4], [2, 1]),
        (("3", "4", "8"), [2, 0], [2, 0]),  # none of them is a name
        (("1", "2", "3"), ["1", "3"], [0, 2]),
        (("1", "2", "3"), [3, 1], [2, 0]),  # 3 is no index
        (("1", "2", "3"), [0, 2], [0, 2]),  # 0 is no name
        (("0", "1", "2"), [2, 1], [2, 1]),
        (("ant", "bee"), ["1", "ant"], [1, 0]),
    ],
)
def test_classes_that_are_called_by_numbers(names: tuple[str, ...], labels: list[Any], expected: list[int]) -> None:
    assert Classes(names).encode(Dataset.from_dict({"label": labels})).tolist() == expected


@pytest.mark.parametrize(
    ("names", "labels", "words"),
    [
        (("1", "2", "3"), [1, 2, 1], r"3 example\(s\) have a number that is the name of one class .*: 1; 2 .*as text"),
        (("10", "20", "30"), ["10", "1"], r"does not know: '1'"),  # no index: classes are called by numbers
        (("10", "20", "30"), [10, 1], r"does not know: 1 "),
        (("3", "4", "8"), [3, 5], r"does not know: 5 "),
    ],
)
def test_a_number_that_may_be_two_classes_is_refused(names: tuple[str, ...], labels: list[Any], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        Classes(names).encode(Dataset.from_dict({"label": labels}))


@pytest.mark.parametrize("names", [("one",), ("a", "a")])
def test_a_choice_needs_two_different_classes(names: tuple[str, ...]) -> None:
    with pytest.raises(BadInput, match="at least two different names"):
        Classes(names)


values = st.lists(st.tuples(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3)), min_size=3, max_size=8)


@given(values)
def test_numbers_come_back_in_their_own_unit(rows: list[tuple[float, float]]) -> None:
    data = Dataset.from_dict({"target": [list(row) for row in rows]})
    if any(max(column) - min(column) < 1e-3 for column in zip(*rows, strict=True)):
        return
    numbers = Numbers.fit(data)
    scaled = numbers.encode(data)
    assert torch.allclose(scaled.mean(0), torch.zeros(2), atol=1e-4)
    assert torch.allclose(scaled.std(0, unbiased=False), torch.ones(2), atol=1e-4)
    torch.testing.assert_close(numbers.restore(scaled), torch.tensor(rows, dtype=torch.float64), rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("targets", [[1.0, 1.0, 1.0], [[1.0, 2.0], [1.0, 3.0]]])
def test_a_constant_target_is_refused(targets: list[object]) -> None:
    with pytest.raises(BadInput, match="is the same for all"):
        Numbers.fit(Dataset.from_dict({"target": targets}))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), None])
def test_targets_that_are_no_numbers_are_refused(bad: object) -> None:
    with pytest.raises(BadInput, match=r"not 1 finite number\(s\).*example 2"):
        Numbers().encode(Dataset.from_dict({"target": [1.0, bad]}))


@pytest.mark.parametrize("outcome", [Classes(("a", "b")), Numbers((1.0, 2.0), (3.0, 4.0))])
def test_settings_make_an_equal_outcome(outcome: Classes | Numbers) -> None:
    assert outcome_of(outcome.settings()) == outcome
    assert outcome.width == 2


@pytest.mark.parametrize("settings", [{}, {"centre": ["x"], "scale": [1]}, {"centre": [0.0], "scale": [0.0]}])
def test_damaged_settings_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(BadInput):
        outcome_of(settings)
