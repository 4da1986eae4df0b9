from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from expunge.audits.classification.class_confusion import ClassConfusion, concentration, confusion
from expunge.audits.observations import Observations
from expunge.audits.suite import run_one
from expunge.requests.request import DeletionRequest
from expunge.tasks.predictions import Predictions

SAYS = {"a": (2.0, 0.0, 0.0), "b": (0.0, 2.0, 0.0), "c": (0.0, 0.0, 2.0)}


def test_counts_by_hand() -> None:
    found = Predictions(list("1234"), np.array([SAYS[k] for k in "abba"]), np.array([0, 0, 1, 2]), classes=tuple("abc"))
    assert confusion(found).tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]
    assert concentration(np.array([1, 1, 2, 1])) == 0.75


def test_where_a_forgotten_class_went(guesser: Callable, make_labelled: Callable) -> None:
    """Of 4 examples of a, one stays, three go to c; of what is kept one of two b changes."""
    forget, retain = make_labelled("aaaa"), make_labelled("bb", 100)
    ids = [*forget["id"], *retain["id"]]
    before = guesser(dict(zip(ids, (SAYS[k] for k in "aaaabb"), strict=True)))
    after = guesser(dict(zip(ids, (SAYS[k] for k in "acccba"), strict=True)))
    seen = Observations({"unlearned": after, "original": before}, DeletionRequest(forget, retain))
    found = run_one(ClassConfusion(), seen)
    own = {name: e.value for name, e in found.estimates["unlearned"].items()}
    assert own == {"wrong_in_one_class": 1.0, "forget_changed": 0.75, "retain_changed": 0.5}
    assert found.estimates["original"]["wrong_in_one_class"].value is None
    assert found.estimates["original"]["forget_changed"].value == 0.0
    assert list(found.tables[0].columns) == ["true", "predicted", "unlearned", "original"]
    assert found.tables[0].rows == [("a", "c", 0.75, 0.0)]
    assert found.tables[1].rows == [("b", "a", 0.5, 0.0)]
    alone = run_one(ClassConfusion(), Observations({"unlearned": after}, DeletionRequest(forget, retain)))
    assert alone.estimates["unlearned"]["forget_changed"].value is None
    assert alone.estimates["unlearned"]["wrong_in_one_class"].value == pytest.approx(1.0)
