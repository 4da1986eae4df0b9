from __future__ import annotations

import numpy as np
import pytest
import torch
from datasets import Dataset

from expunge.errors import BadInput
from expunge.forget_sets.margin import margins
from expunge.forget_sets.select import select_forget_set
from expunge.tasks.predictor import Predictor


def test_margins_by_hand() -> None:
    logits = torch.tensor([[3.0, 1.0, 2.0], [3.0, 1.0, 2.0]])
    assert margins(logits, torch.tensor([0, 1])).tolist() == [1.0, -2.0]


def test_the_surest_or_the_least_sure_are_taken(examples: Dataset, learnt: Predictor) -> None:
    outputs = learnt.observe(learnt.encode(examples)).outputs
    labels = np.array([int(v) for v in examples["label"]])
    others = np.where(np.arange(3) == labels[:, None], -np.inf, outputs).max(1)
    order = np.argsort(outputs[np.arange(len(labels)), labels] - others)
    ids = np.array(examples["id"])
    sure = select_forget_set(examples, "margin", learnt, settings={"count": 5}).request.forget["id"]
    unsure = select_forget_set(examples, "margin", learnt, settings={"count": 5, "order": "smallest"}).request.forget[
        "id"
    ]
    assert set(sure) == set(ids[order[-5:]])
    assert set(unsure) == set(ids[order[:5]])


def test_it_needs_a_classifier(examples: Dataset, tiny_predictor, tiny_rows) -> None:
    with pytest.raises(BadInput, match="give --model"):
        select_forget_set(examples, "margin")
    with pytest.raises(BadInput, match="does not serve regressor"):
        select_forget_set(tiny_rows("table-regressor", range(20)), "margin", tiny_predictor("table-regressor"))
