from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from datasets import Dataset

from expunge.benchmarks.predictor_data import CLASSIFICATION, REGRESSION, cut, known_data, make_request, read_data
from expunge.errors import BadInput


def labelled(*counts: int) -> Dataset:
    labels = [label for label, count in zip("abc", counts, strict=False) for _ in range(count)]
    return Dataset.from_dict({"id": [f"{i:03d}" for i in range(len(labels))], "label": labels})


def test_a_cut_keeps_the_shares_of_labels() -> None:
    assert Counter(cut(labelled(60, 30, 10), 20)["label"]) == {"a": 12, "b": 6, "c": 2}
    assert Counter(cut(labelled(20, 20, 20), 20)["label"]) == {"a": 7, "b": 7, "c": 6}
    assert len(cut(labelled(5, 1), None)) == len(cut(labelled(5, 1), 9)) == 6


def test_digits_are_cut_whatever_their_order() -> None:
    train, test = read_data("digits", None, 95)
    assert len(train) == 95
    assert len(test) == 597
    assert not set(train["id"]) & set(test["id"])
    turned = train.select(range(len(train) - 1, -1, -1))
    assert sorted(cut(train, 50)["id"]) == sorted(cut(turned, 50)["id"])
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
    train = cut(train, 400)
    assert not set(train["id"]) & set(test["id"])
    task = data.start(train)
    assert task.kind == data.kind
    for scenario in data.scenarios:
        request = make_request(name, scenario, train, test, 0)
        assert request.holdout is not None
        assert len(request.forget) + len(request.retain or ()) == 400
    assert task.observe(task.encode(train.select(range(8)))).finite.all()
