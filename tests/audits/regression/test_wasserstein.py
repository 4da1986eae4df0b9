from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from datasets import Dataset

from expunge.audits.observations import Observations
from expunge.audits.regression.wasserstein import Wasserstein, in_unit, wasserstein
from expunge.audits.suite import run_one
from expunge.requests.request import DeletionRequest
from expunge.tasks.predictions import Predictions
from expunge.tasks.predictor import Predictor


def test_it_is_the_area_between_sorted_numbers() -> None:
    luck = np.random.default_rng(0)
    one, other = luck.normal(size=(40, 2)), 3 + luck.normal(size=(40, 2))
    by_hand = np.mean([np.abs(np.sort(one[:, d]) - np.sort(other[:, d])).mean() for d in range(2)])
    assert wasserstein(one, other) == pytest.approx(by_hand)
    assert wasserstein(one, one[::-1]) == 0.0
    with pytest.raises(ValueError, match="compared"):
        wasserstein(one, other[:, :1])


def test_numbers_are_in_the_unit_of_the_data() -> None:
    found = Predictions(["x"], np.array([[1.0, -1.0]]), np.zeros((1, 2)), centre=(10.0, 0.0), scale=(2.0, 5.0))
    assert in_unit(found).tolist() == [[12.0, -5.0]]


def test_a_shift_shows_in_full(tiny_predictor: Callable[..., Predictor], tiny_rows: Callable[..., Dataset]) -> None:
    request = DeletionRequest(tiny_rows("table-regressor", range(20)), tiny_rows("table-regressor", range(20, 40)))
    oracle = tiny_predictor("table-regressor", 1)
    moved = oracle.copy()
    moved.head_module().bias.data += 1.0
    models = {"unlearned": moved, "oracle": oracle}
    found = run_one(Wasserstein(), Observations(models, request))
    shift = np.mean(oracle.outcome.scale)
    own = found.estimates["unlearned"]
    assert own["forget_w1"].value == pytest.approx(shift, rel=1e-5)
    assert own["retain_difference"].value == pytest.approx(shift, rel=1e-5)
    assert found.estimates["oracle"]["forget_w1"].value is None
