"""What follows from the outputs of a model, against numbers worked out by other means."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax

from expunge.tasks.predictions import Predictions, joined

rows = st.lists(st.lists(st.floats(-50, 50), min_size=3, max_size=3), min_size=1, max_size=6)


def classes(logits: list[list[float]], targets: list[int]) -> Predictions:
    ids = [f"e{i}" for i in range(len(logits))]
    return Predictions(ids, np.array(logits), np.array(targets), classes=("a", "b", "c"))


@given(rows, st.integers(0, 2))
def test_classes_against_scipy(logits: list[list[float]], label: int) -> None:
    found = classes(logits, [label] * len(logits))
    expected = log_softmax(np.array(logits), axis=-1)
    np.testing.assert_allclose(found.log_probabilities, expected, atol=1e-9)
    np.testing.assert_allclose(found.nll, -expected[:, label], atol=1e-9)
    np.testing.assert_allclose(found.probabilities.sum(-1), 1)
    assert found.correct.tolist() == [int(np.argmax(row)) == label for row in logits]


def test_numbers_are_wrong_in_the_unit_of_the_data() -> None:
    found = Predictions(["x"], np.array([[1.0, 0.0]]), np.array([[0.0, 2.0]]), centre=(10.0, 0.0), scale=(3.0, 5.0))
    assert found.nll.tolist() == [(1 + 4) / 2]
    assert found.absolute_error.tolist() == [(3 + 10) / 2]
    assert found.in_words() == {"x": "13, 0"}


def test_values_keep_their_examples() -> None:
    found = classes([[1.0, 0, 0], [0, 2.0, 0]], [0, 0])
    assert found.by_id(found.correct) == {"e0": 1.0, "e1": 0.0}
    turned = found.take([1, 0])
    assert list(turned.ids) == ["e1", "e0"]
    assert turned.nll.tolist() == found.nll[::-1].tolist()
    assert found.in_words()["e1"].startswith("b (")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_broken_outputs_are_seen(bad: float) -> None:
    assert classes([[bad, 0, 0], [0, 0, 0]], [0, 0]).finite.tolist() == [False, True]


def test_sets_of_one_model_join() -> None:
    one = Predictions(["a"], np.array([[1.0, 0.0]]), np.array([0]), np.ones((1, 3), np.float32), ("x", "y"))
    other = Predictions(["b"], np.array([[0.0, 1.0]]), np.array([0]), np.zeros((1, 3), np.float32), ("x", "y"))
    both = joined([one, other])
    assert both.ids == ["a", "b"]
    assert both.correct.tolist() == [True, False]
    assert both.features is not None
    assert both.features.shape == (2, 3)
    bare = Predictions(["c"], np.array([[0.0, 1.0]]), np.array([1]), None, ("x", "y"))
    assert joined([one, bare]).features is None
    with pytest.raises(ValueError, match="one model"):
        joined([one, Predictions(["c"], np.zeros((1, 2)), np.array([0]), classes=("y", "x"))])
