from __future__ import annotations

import pytest
from datasets import Dataset, concatenate_datasets

from expunge.errors import BadInput
from expunge.forget_sets.random import Random
from expunge.forget_sets.select import configured, select_forget_set
from expunge.tasks.predictor import Predictor


def test_forget_and_retain_are_the_training_set(examples: Dataset) -> None:
    found = select_forget_set(examples, "random", settings={"share": 0.2}, unseen=examples.select([]))
    request = found.request
    assert request.retain is not None
    assert sorted([*request.forget["id"], *request.retain["id"]]) == sorted(examples["id"])
    assert request.holdout is None
    assert (found.count, found.unit, found.selector) == (18, "example", "random")
    assert found.settings == {"share": 0.2, "count": None, "unit": "example"}


def test_a_configured_selector_takes_no_settings() -> None:
    chosen = Random()
    assert configured(chosen) is chosen
    with pytest.raises(BadInput, match="already configured"):
        configured(chosen, {"share": 0.3})


def test_unknown_names_are_suggested(examples: Dataset) -> None:
    with pytest.raises(BadInput, match="did you mean worst_case"):
        select_forget_set(examples, "worstcase")
    with pytest.raises(BadInput, match="did you mean count"):
        select_forget_set(examples, "random", settings={"counts": 3})


def test_a_training_set_that_cannot_be_used_is_refused(examples: Dataset, learnt: Predictor) -> None:
    with pytest.raises(BadInput, match="training set: repeats 1"):
        select_forget_set(concatenate_datasets([examples, examples.select([0])]), "random")
    with pytest.raises(BadInput, match="training set: is empty"):
        select_forget_set(examples.select([]), "random")
    renamed = examples.map(lambda row: {"label": f"class {row['label']}"})
    with pytest.raises(BadInput, match="class 0"):
        select_forget_set(renamed, "worst_case", learnt)
