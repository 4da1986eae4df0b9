from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.audits.prediction_features import (
    FEATURES,
    entropy,
    modified_entropy,
    prediction_features,
    released_modified_entropy,
)
from expunge.tasks.predictions import Predictions

P = np.array([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]])
Y = np.array([0, 0])


def test_entropies_by_hand() -> None:
    assert entropy(P)[0] == pytest.approx(-(0.7 * np.log(0.7) + 0.2 * np.log(0.2) + 0.1 * np.log(0.1)))
    assert modified_entropy(P, Y)[0] == pytest.approx(-0.3 * np.log(0.7) - 0.2 * np.log(0.8) - 0.1 * np.log(0.9))
    assert modified_entropy(P, Y)[1] == pytest.approx(-0.9 * np.log(0.1) - 0.1 * np.log(0.9) - 0.8 * np.log(0.2))


def test_certainty_has_no_entropy_and_wrong_certainty_a_large_one() -> None:
    sure = np.array([[1.0, 0.0], [1.0, 0.0]])
    assert entropy(sure).tolist() == [0.0, 0.0]
    right, wrong = modified_entropy(sure, np.array([0, 1]))
    assert right == 0.0
    assert wrong == pytest.approx(-2 * np.log(1e-30))


def test_the_released_form_turns_the_columns_of_all_labels_in_every_row() -> None:
    """Row by row and cell by cell as released: class 1 is nobody's, so its column alone stays as it is."""
    labels = np.array([0, 2])
    expected = []
    for row in P:
        total = 0.0
        for c, p in enumerate(row):
            total -= (1 - p if c in labels else p) * np.log(p)
        expected.append(total)
    assert released_modified_entropy(P, labels) == pytest.approx(expected)
    assert released_modified_entropy(P, labels) != pytest.approx(modified_entropy(P, labels))
    # What one example gets depends on the others' labels.
    assert released_modified_entropy(P, np.array([0, 1]))[0] != pytest.approx(expected[0])


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(-30, 30), min_size=3, max_size=3), st.integers(0, 2))
def test_laws(logits: list[float], label: int) -> None:
    found = prediction_features(Predictions(["x"], np.array([logits]), np.array([label]), classes=("a", "b", "c")))
    assert list(found) == list(FEATURES)
    assert all(value.shape == (1, 3 if name == "probability" else 1) for name, value in found.items())
    assert -1e-12 <= found["entropy"][0, 0] <= np.log(3) + 1e-12
    assert found["modified_entropy"][0, 0] >= -1e-12
    assert found["confidence"][0, 0] == found["probability"][0, label]


def test_the_released_form_keeps_small_probabilities_of_float32() -> None:
    p = np.array([[1.0, 1e-40, 1e-60]])
    # Class 0 is the only label: its weight is 0, the weights of the others are p itself, and those are next to nothing.
    assert released_modified_entropy(p, np.array([0])) == pytest.approx([0.0], abs=1e-30)
    # Turned, each counts with its logarithm: of 1e-40 in float32, of 1e-30 where float32 has 0.
    found = released_modified_entropy(p, np.array([1]))
    assert found == pytest.approx([40 * np.log(10)], rel=1e-5)
    assert released_modified_entropy(p, np.array([2])) == pytest.approx([30 * np.log(10)])
