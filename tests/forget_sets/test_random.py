from __future__ import annotations

from datasets import Dataset

from expunge.data.scenarios import random_examples
from expunge.forget_sets.select import select_forget_set


def test_it_draws_what_the_scenario_draws_whatever_the_order(examples: Dataset) -> None:
    drawn = set(select_forget_set(examples, "random", seed=3).request.forget["id"])
    assert drawn == set(random_examples(examples, 0.1, 3).forget["id"])
    assert drawn == set(select_forget_set(examples.shuffle(seed=1), "random", seed=3).request.forget["id"])
    assert drawn != set(select_forget_set(examples, "random", seed=4).request.forget["id"])


def test_classes_can_be_drawn(examples: Dataset) -> None:
    found = select_forget_set(examples, "random", settings={"unit": "class", "count": 1}, seed=1).request
    assert len(set(found.forget["label"])) == 1
    assert found.scenario == "class"
    assert not set(found.forget["label"]) & set(found.retain["label"])  # type: ignore[index]
