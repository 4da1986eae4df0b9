"""Tables: numbers scaled, categories one-hot, gaps refused or filled, scales taken anew for retraining."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from datasets import Dataset

from expunge.errors import BadInput
from expunge.tasks.table_inputs import TableInputs

TRAIN = Dataset.from_dict(
    {
        "id": ["a", "b", "c", "d"],
        "age": [1.0, 2.0, 3.0, 6.0],
        "same": [5, 5, 5, 5],
        "town": ["x", "y", "x", "x"],
        "label": ["p", "q", "p", "q"],
        "group": ["g", "g", "h", "h"],
        "source_line": [1, 2, 3, 4],
    }
)


def test_inputs_are_what_is_neither_id_nor_label_nor_place() -> None:
    inputs = TableInputs.fit(TRAIN)
    assert list(inputs.numbers) == ["age", "same"]
    assert dict(inputs.categories) == {"town": ("x", "y")}
    rows = inputs.encode(TRAIN).numpy()
    assert rows.shape == (4, inputs.width)
    np.testing.assert_allclose(rows[:, 0], (np.array([1, 2, 3, 6]) - 3) / np.std([1, 2, 3, 6]), rtol=1e-6)
    assert (rows[:, 1] == 0).all(), "a constant column says nothing and breaks nothing"
    np.testing.assert_array_equal(rows[:, 2:], [[1, 0], [0, 1], [1, 0], [1, 0]])


def test_a_category_that_was_not_there_is_all_zeros() -> None:
    new = Dataset.from_dict({"age": [1.0], "same": [5], "town": ["z"]})
    assert TableInputs.fit(TRAIN).encode(new)[0, 2:].tolist() == [0, 0]


def test_gaps_are_refused_or_filled_with_the_mean() -> None:
    gap = Dataset.from_dict({"age": [None, 2.0, float("nan")], "same": [5, 5, 5], "town": ["x"] * 3})
    with pytest.raises(BadInput, match=r"column 'age': 2 value\(s\) are missing.*example 1; example 3"):
        TableInputs.fit(TRAIN).encode(gap)
    filled = TableInputs.fit(TRAIN, missing="mean").encode(gap)
    assert filled[0, 0] == filled[2, 0] == 0
    infinite = Dataset.from_dict({"age": [float("inf")], "same": [5], "town": ["x"]})
    with pytest.raises(BadInput, match="infinite"):
        TableInputs.fit(TRAIN, missing="mean").encode(infinite)


def test_only_the_cells_that_are_no_numbers_are_named() -> None:
    cells = Dataset.from_dict({"age": ["1", "tall", " 2.0 ", ""], "same": [5] * 4, "town": ["x"] * 4})
    with pytest.raises(BadInput, match=r"column 'age': 2 value\(s\) are .* no numbers: example 2; example 4 ->"):
        TableInputs.fit(TRAIN).encode(cells)
    fine = cells.select([0, 2])
    plain = Dataset.from_dict({"age": [1.0, 2.0], "same": [5] * 2, "town": ["x"] * 2})
    assert torch.equal(TableInputs.fit(TRAIN).encode(fine), TableInputs.fit(TRAIN).encode(plain))
    with pytest.raises(BadInput, match=r"1 value\(s\).*: example 2 ->"):
        TableInputs.fit(TRAIN, missing="mean").encode(cells)


def test_retraining_takes_its_scales_from_what_is_kept() -> None:
    kept = TRAIN.select([0, 1])
    again = TableInputs.fit(TRAIN).refit(kept)
    assert again.numbers["age"] == (1.5, 0.5)
    assert dict(again.categories) == {"town": ("x", "y")}, "the width of the network stays"


def test_settings_make_equal_inputs() -> None:
    inputs = TableInputs.fit(TRAIN, missing="mean")
    again = TableInputs.of(json.loads(json.dumps(inputs.settings())))
    assert torch.equal(again.encode(TRAIN), inputs.encode(TRAIN))
    with pytest.raises(BadInput, match="table settings"):
        TableInputs.of({"numbers": 3})


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"x": [None, None]}, "holds no number at all"),
        ({"x": ["1", None]}, "neither numbers nor texts alone"),
        ({"x": [str(i) for i in range(101)]}, "101 different texts"),
        ({"label": ["a"]}, "hold nothing to give the model"),
    ],
)
def test_columns_that_cannot_be_inputs_are_named(columns: dict[str, list[object]], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        TableInputs.fit(Dataset.from_dict(columns))
