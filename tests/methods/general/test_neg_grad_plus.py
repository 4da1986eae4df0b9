from __future__ import annotations

from typing import Any

import pytest
import torch

from expunge.methods.general.neg_grad_plus import NegGradPlus, NegGradPlusConfig
from expunge.methods.run import unlearn
from expunge.requests.request import DeletionRequest


def test_the_objective_is_the_weighted_difference(tiny_predictor: Any, tiny_rows: Any) -> None:
    task = tiny_predictor("table")
    forget, retain = (task.statistics(task.encode(tiny_rows("table", r))) for r in (range(4), range(10, 16)))
    objective = NegGradPlus(NegGradPlusConfig(retain_share=0.8)).objective()
    assert objective.anchor == "retain"
    by_name = {term.name: term for term in objective.terms}
    value = by_name["retain_nll"].factor * by_name["retain_nll"].partial_sum([retain]) / 6
    value = value + by_name["forget_ascent"].factor * by_name["forget_ascent"].partial_sum([forget]) / 4
    cross = torch.nn.functional.cross_entropy
    expected = 0.8 * cross(retain.logits, retain.targets) - 0.2 * cross(forget.logits, forget.targets)
    assert float(value) == pytest.approx(float(expected), rel=1e-5)


def test_more_ascent_forgets_more(tiny_predictor: Any, tiny_rows: Any) -> None:
    task = tiny_predictor("table")
    request = DeletionRequest(tiny_rows("table", range(6)), tiny_rows("table", range(10, 30)))
    settings = {"epochs": 40, "batch_size": 10, "learning_rate": 1e-2, "warmup": 0.0}
    losses = []
    for share in (1.0, 0.6):
        new = unlearn(task, request, "neg_grad_plus", settings={**settings, "retain_share": share}).model
        losses.append(float(new.statistics(new.encode(request.forget)).nll.mean()))
    assert losses[1] > losses[0] + 0.5
