from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from expunge.audits.classification.accuracies import Accuracies, accuracy, unlearning_accuracy
from expunge.audits.observations import Observations
from expunge.audits.suite import run_one
from expunge.requests.request import DeletionRequest

RIGHT = {"a": (2.0, 0.0, 0.0), "b": (0.0, 2.0, 0.0), "c": (0.0, 0.0, 2.0)}


def test_percent_by_hand() -> None:
    assert accuracy(np.array([True, True, False, True])) == 75.0
    assert unlearning_accuracy(np.array([True, True, False, True])) == 25.0
    with pytest.raises(ValueError, match="no example"):
        accuracy(np.array([], dtype=bool))


def test_a_forgotten_class(guesser: Callable, make_labelled: Callable) -> None:
    """Of class a nothing is known any more; of the rest, one of five kept and one of three new examples is wrong."""
    forget, retain, holdout = make_labelled("aaaa"), make_labelled("bcbcb", 100), make_labelled("aabcb", 200)
    says = {row["id"]: RIGHT[row["label"]] for part in (retain, holdout) for row in part}
    says |= dict.fromkeys(forget["id"], RIGHT["b"]) | {"100": RIGHT["c"], "202": RIGHT["a"], "201": RIGHT["c"]}
    request = DeletionRequest(forget, retain, holdout, scenario="class")
    knows = guesser({row["id"]: RIGHT[row["label"]] for part in (forget, retain, holdout) for row in part})
    found = run_one(Accuracies(), Observations({"unlearned": guesser(says), "original": knows}, request))
    numbers = {name: e.value for name, e in found.estimates["unlearned"].items()}
    assert numbers == pytest.approx({"ua": 100.0, "ra": 80.0, "ta": 200 / 3, "fa": 50.0})
    assert {name: e.value for name, e in found.estimates["original"].items()} == pytest.approx(
        {"ua": 0.0, "ra": 100.0, "ta": 100.0, "fa": 100.0}
    )
    ua = found.estimates["original"]["ua"]
    assert ua.low == 0.0
    assert ua.high == pytest.approx(60.24, abs=0.01)  # Clopper-Pearson of 4 of 4
    assert found.attempted["examples"] == {"forget": 4, "retain": 5, "test": 3, "like the forget set": 2}


def test_what_is_not_there_has_no_value(guesser: Callable, make_labelled: Callable) -> None:
    forget, like = make_labelled("aa"), make_labelled("aa", 200)
    model = guesser(dict.fromkeys([*forget["id"], *like["id"]], RIGHT["a"]))
    request = DeletionRequest(forget, None, like, scenario="class")
    estimates = run_one(Accuracies(), Observations({"unlearned": model}, request)).estimates["unlearned"]
    assert estimates["ra"].value is None
    assert "no retain set" in estimates["ra"].note
    assert estimates["ta"].value is None
    assert "audits.accuracies.test" in estimates["ta"].note
    assert estimates["fa"].value == 100.0
