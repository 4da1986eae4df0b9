"""Classes and numbers: encoded, restored, and refused where they cannot be."""

from __future__ import annotations

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


@pytest.mark.parametrize("labels", [["bee", "dog"], [0, 2], [0, -1], [0, None]])
def test_unknown_labels_are_refused_by_place(labels: list[object]) -> None:
    with pytest.raises(BadInput, match=r"1 example\(s\) have a label .* \(example 2\)"):
        Classes(("ant", "bee")).encode(Dataset.from_dict({"label": labels}))


def test_classes_that_are_called_by_numbers() -> None:
    quality = Classes(("3", "4", "8"))
    assert quality.encode(Dataset.from_dict({"label": ["8", "3"]})).tolist() == [2, 0]
    assert quality.encode(Dataset.from_dict({"label": [8, 4]})).tolist() == [2, 1]
    # An index may be written as a text where no class is called so.
    assert Classes(("ant", "bee")).encode(Dataset.from_dict({"label": ["1", "ant"]})).tolist() == [1, 0]
    ranks = Classes(("1", "2", "3"))
    assert ranks.encode(Dataset.from_dict({"label": ["1", "3"]})).tolist() == [0, 2]
    with pytest.raises(BadInput, match=r"1 example\(s\) have a number that is the name of one class .*: 2 .*as text"):
        ranks.encode(Dataset.from_dict({"label": [3, 2]}))


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
