from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from expunge.audits.classification.activation_distance import ActivationDistance, activation_distance
from expunge.audits.observations import Observations
from expunge.audits.suite import run_one
from expunge.requests.request import DeletionRequest


def test_by_hand() -> None:
    p, q = np.array([[1.0, 0.0], [0.5, 0.5]]), np.array([[0.0, 1.0], [0.5, 0.5]])
    assert activation_distance(p, q).tolist() == pytest.approx([np.sqrt(2), 0.0])


def test_distance_to_each_oracle_is_averaged(guesser: Callable, make_labelled: Callable) -> None:
    forget, retain = make_labelled("abc"), make_labelled("abc", 100)
    ids = [*forget["id"], *retain["id"]]
    sure, other, flat = (dict.fromkeys(ids, logits) for logits in ((50.0, 0, 0), (0, 50.0, 0), (0.0, 0.0, 0.0)))
    models = {"unlearned": guesser(sure), "oracle": guesser(sure), "oracle-2": guesser(other)}
    found = run_one(ActivationDistance(), Observations(models, DeletionRequest(forget, retain)))
    assert found.estimates["unlearned"]["forget_distance"].value == pytest.approx(np.sqrt(2) / 2)
    assert found.estimates["oracle"]["retain_distance"].value == pytest.approx(np.sqrt(2))
    one = {"unlearned": guesser(flat), "oracle": guesser(sure)}
    found = run_one(ActivationDistance(), Observations(one, DeletionRequest(forget)))
    expected = np.sqrt((2 / 3) ** 2 + 2 * (1 / 3) ** 2)
    assert found.estimates["unlearned"]["forget_distance"].value == pytest.approx(expected)
    assert found.estimates["oracle"]["forget_distance"].value is None
    assert found.estimates["oracle"]["forget_distance"].note
