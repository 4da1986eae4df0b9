"""Encoded examples: taken, joined and told apart by content."""

from __future__ import annotations

import pytest
import torch

from expunge.tasks.examples import LabelledExamples

FIXED = LabelledExamples(["a", "b", "c"], torch.arange(6.0).reshape(3, 2), torch.tensor([0, 1, 0]))
RAGGED = LabelledExamples(["a", "b"], [torch.tensor([1, 2, 3]), torch.tensor([4])], torch.tensor([[0.5], [1.5]]))


@pytest.mark.parametrize(("examples", "lengths"), [(FIXED, [1, 1, 1]), (RAGGED, [3, 1])])
def test_lengths_labels_and_rows(examples: LabelledExamples, lengths: list[int]) -> None:
    assert [examples.length(i) for i in range(len(examples))] == lengths
    assert [examples.labelled(i) for i in range(len(examples))] == [1] * len(examples)
    assert all(examples.rows([0, 1], positions) == 2 for positions in ("answer", "attended", "all"))  # type: ignore[arg-type]


@pytest.mark.parametrize("examples", [FIXED, RAGGED])
def test_taking_and_joining_are_inverse(examples: LabelledExamples) -> None:
    again = examples.take([1]) + examples.take([0])
    assert list(again.ids) == ["b", "a"]
    for index, at in ((0, 1), (1, 0)):
        assert again.content(index) == examples.content(at)
        assert torch.equal(again.inputs[index], examples.inputs[at])


def test_content_is_input_and_label() -> None:
    other = FIXED.with_targets(torch.tensor([0, 0, 0]))
    assert [FIXED.content(i) == other.content(i) for i in range(3)] == [True, False, True]


def test_pixels_of_two_kinds_are_joined_on_one_scale() -> None:
    whole = LabelledExamples(["a"], torch.tensor([[0, 51, 255]], dtype=torch.uint8), torch.tensor([0]))
    fractions = LabelledExamples(["b"], torch.tensor([[0.5, 0.25, 1.0]]), torch.tensor([1]))
    for joined, order in ((whole + fractions, [0, 1]), (fractions + whole, [1, 0])):
        expected = torch.tensor([[0.0, 51 / 255, 1.0], [0.5, 0.25, 1.0]])[order]
        assert torch.equal(joined.inputs, expected)  # type: ignore[arg-type]
    assert (whole + whole).inputs.dtype == torch.uint8  # type: ignore[union-attr]
