"""What is wrong with a labelled request is found before compute, each thing in one clear message."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, concatenate_datasets

from expunge.errors import Problem
from expunge.requests.labelled import labelled_preflight
from expunge.requests.request import DeletionRequest
from expunge.tasks.predictor import Predictor

Make = Callable[..., Predictor]
Rows = Callable[[str, range], Dataset]


def changed(examples: Dataset, index: int, **new: Any) -> Dataset:
    rows = examples.to_list()
    rows[index] |= new
    return Dataset.from_list(rows)


def errors(request: DeletionRequest, reader: Any = None) -> list[str]:
    return [str(p) for p in labelled_preflight(request, reader) if p.severity == "error"]


@pytest.mark.parametrize("name", ["resnet", "bert", "table", "table-regressor"])
def test_a_sound_request_has_no_errors(tiny_predictor: Make, tiny_rows: Rows, name: str) -> None:
    request = DeletionRequest(*(tiny_rows(name, part) for part in (range(8), range(8, 20), range(20, 28))))
    assert labelled_preflight(request, tiny_predictor(name)) == []


def test_few_examples_are_a_warning(tiny_rows: Rows) -> None:
    request = DeletionRequest(tiny_rows("table", range(6)), tiny_rows("table", range(6, 20)))
    (found,) = labelled_preflight(request)
    assert (found.where, found.severity) == ("forget", "warning")


def test_a_class_that_is_emptied_must_be_meant(tiny_rows: Rows) -> None:
    train = tiny_rows("table", range(30))
    bees = train.filter(lambda row: row["label"] == "bee")
    others = train.filter(lambda row: row["label"] != "bee")
    (found,) = errors(DeletionRequest(bees, others))
    assert found.startswith("forget: would leave nothing of 1 class(es): bee -> say scenario=class")
    assert errors(DeletionRequest(bees, others, scenario="class")) == []
    some, rest = bees.select(range(2)), bees.select(range(2, len(bees)))
    (found,) = errors(DeletionRequest(some, concatenate_datasets([others, rest]), scenario="class"))
    assert found.startswith(f"retain: holds {len(rest)} example(s) of class(es) that are to be forgotten: bee")


def test_a_retain_set_of_one_class_or_one_target_is_refused(tiny_rows: Rows) -> None:
    train = tiny_rows("table", range(30))
    ants = train.filter(lambda row: row["label"] == "ant")
    others = train.filter(lambda row: row["label"] != "ant")
    (found,) = errors(DeletionRequest(others, ants, scenario="class"))
    assert "retain: holds one class only, 'ant'" in found
    flat = Dataset.from_dict({"id": [f"r{i}" for i in range(9)], "target": [2.5] * 9})
    (found,) = errors(DeletionRequest(Dataset.from_dict({"id": ["a"], "target": [1.0]}), flat))
    assert "retain: holds one value of the target only, '2.5'" in found


NAN = float("nan")


@pytest.mark.parametrize(
    ("name", "new", "words"),
    [
        (
            "resnet",
            {"label": "dog"},
            "forget: column 'label': 1 example(s) have a label that the model's head does not",
        ),
        ("table", {"label": ""}, "does not know: ''"),
        ("table", {"height": NAN}, "column 'height': 1 value(s) are missing, NaN, infinite or no numbers"),
        ("table", {"height": None}, "column 'height': 1 value(s) are missing"),
        ("table-regressor", {"target": [NAN, 1.0]}, "target that is not 2 finite number(s): [nan, 1.0]"),
        ("table-regressor", {"target": [1.0]}, "target that is not 2 finite number(s): [1.0]"),
        ("bert", {"text": " "}, "1 text(s) are empty or no text"),
        ("resnet", {"image": np.zeros((9, 8, 3)).tolist()}, "holds images of mixed size: 8x8; 9x8"),
        ("resnet", {"image": np.full((8, 8, 3), NAN).tolist()}, "have pixels that are NaN or infinite"),
        ("resnet", {"image": np.full((8, 8, 3), 256).tolist()}, "whole-number pixels outside 0 to 255"),
        ("resnet", {"image": np.zeros((8, 8, 2), int).tolist()}, "have 2 channels where the model takes 3"),
        ("vit", {"image": np.zeros((9, 8, 3), int).tolist()}, "are 9x8 where the model takes 8x8"),
    ],
)
def test_what_the_model_cannot_be_given_is_one_clear_message(
    tiny_predictor: Make, tiny_rows: Rows, name: str, new: dict[str, Any], words: str
) -> None:
    forget = changed(tiny_rows(name, range(8)), 2, **new)
    found = errors(DeletionRequest(forget, tiny_rows(name, range(8, 20))), tiny_predictor(name))
    assert len(found) == 1
    assert words in found[0]
    assert "example 3" in found[0] or "mixed size" in found[0]


def test_labels_given_as_numbers_must_be_in_range(tiny_predictor: Make, tiny_rows: Rows) -> None:
    rows = tiny_rows("table", range(8)).to_list()
    for k, row in enumerate(rows):
        row["label"] = 3 if k == 5 else k % 3
    retain = Dataset.from_list([{**row, "id": f"r{row['id']}", "label": k % 3} for k, row in enumerate(rows)])
    found = errors(DeletionRequest(Dataset.from_list(rows), retain, scenario="class"), tiny_predictor("table"))
    assert len(found) == 1
    assert "does not know: 3 (example 6)" in found[0]
    assert "0 to 2, or ant; bee; cat" in found[0]


def test_sets_of_different_size_are_named(tiny_predictor: Make, tiny_rows: Rows) -> None:
    small = [{**row, "image": np.zeros((6, 6, 3), int).tolist()} for row in tiny_rows("resnet", range(8, 20)).to_list()]
    request = DeletionRequest(tiny_rows("resnet", range(8)), Dataset.from_list(small))
    (found,) = errors(request, tiny_predictor("resnet"))
    assert "hold examples of different size: forget 3x8x8; retain 3x6x6" in found


def test_everything_is_said_at_once(tiny_predictor: Make, tiny_rows: Rows) -> None:
    forget = changed(tiny_rows("table", range(8)), 1, label="dog", height=NAN)
    retain = changed(tiny_rows("table", range(8, 20)), 0, width=NAN)
    found = labelled_preflight(DeletionRequest(forget, retain), tiny_predictor("table"))
    assert [p.where.split(":")[0] for p in found if p.severity == "error"] == ["forget", "forget", "retain"]
    assert all(isinstance(p, Problem) for p in found)
