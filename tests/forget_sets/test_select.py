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


def test_a_file_name_is_not_a_training_set() -> None:
    with pytest.raises(BadInput, match="is a str, not a dataset"):
        select_forget_set("train.csv", "random")  # type: ignore[arg-type]


def test_unseen_examples_are_a_control_only_for_what_is_like_them(examples: Dataset, learnt: Predictor) -> None:
    train, unseen = examples.select(range(80)), examples.select(range(80, 90))
    drawn = select_forget_set(train, "random", unseen=unseen)
    chosen = select_forget_set(train, "margin", learnt, unseen=unseen)
    classes = select_forget_set(train, "margin", learnt, unseen=unseen, settings={"unit": "class", "count": 1})
    assert drawn.request.holdout is not None
    assert (drawn.test, chosen.request.holdout, classes.test) == (None, None, None)
    assert chosen.test is not None
    assert list(chosen.test["id"]) == list(unseen["id"])
    assert set(classes.request.holdout["label"]) == set(classes.request.forget["label"])  # type: ignore[index]


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


def test_a_chosen_set_is_printed_without_its_scores(examples: Dataset) -> None:
    found = select_forget_set(examples, "random", settings={"share": 0.2})
    assert found.scores
    assert not [key for key in found.scores if f"'{key}':" in repr(found)]
