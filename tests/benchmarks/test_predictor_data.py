from __future__ import annotations

from pathlib import Path

import pytest

from expunge.benchmarks.predictor_data import CLASSIFICATION, REGRESSION, balanced, known_data, make_request, read_data
from expunge.errors import BadInput


def test_digits_are_cut_to_as_many_of_each() -> None:
    train, test = read_data("digits", None, 95)
    counts = [train["label"].count(label) for label in sorted(set(train["label"]))]
    assert counts == [10] * 5 + [9] * 5
    assert len(test) == 597
    assert not set(train["id"]) & set(test["id"])
    turned = train.select(range(len(train) - 1, -1, -1))
    assert sorted(balanced(train, 50)["id"]) == sorted(balanced(turned, 50)["id"])
    whole, _ = read_data("digits", None, None)
    assert len(whole) == 1200


def test_the_model_knows_every_class() -> None:
    train, _ = read_data("digits", None, 60)
    task = CLASSIFICATION["digits"].start(train)
    assert task.kind == "image_classifier"
    assert task.observe(task.encode(train)).outputs.shape == (60, 10)


def test_requests_are_what_they_say() -> None:
    train, test = read_data("digits", None, 100)
    some, other = (make_request("digits", "random", train, test, seed) for seed in (0, 1))
    assert (len(some.forget), some.scenario) == (10, "examples")
    assert set(some.forget["id"]) != set(other.forget["id"])
    whole = make_request("digits", "class", train, test, 0)
    assert (set(whole.forget["label"]), whole.scenario) == ({"3"}, "class")
    assert whole.holdout is not None
    assert set(whole.holdout["label"]) == {"3"}
    with pytest.raises(BadInput, match="range"):
        make_request("digits", "range", train, test, 0)
    with pytest.raises(BadInput, match="digits"):
        known_data("digts")


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*CLASSIFICATION, *REGRESSION} - {"digits"}))
def test_published_sets_can_be_learnt_and_forgotten(name: str, real_data: Path) -> None:
    data = known_data(name)
    train, test = data.read(str(real_data))
    train = balanced(train, 400)
    assert not set(train["id"]) & set(test["id"])
    task = data.start(train)
    assert task.kind == data.kind
    for scenario in data.scenarios:
        request = make_request(name, scenario, train, test, 0)
        assert request.holdout is not None
        assert len(request.forget) + len(request.retain or ()) == 400
    assert task.observe(task.encode(train.select(range(8)))).finite.all()
