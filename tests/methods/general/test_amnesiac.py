from __future__ import annotations

from typing import Any

import pytest
import torch

from expunge.methods.general.random_label import wrong_classes
from expunge.methods.run import unlearn
from expunge.requests.request import DeletionRequest


def test_the_loss_is_one_average_over_both_sets(tiny_predictor: Any, tiny_rows: Any) -> None:
    task = tiny_predictor("table")
    request = DeletionRequest(tiny_rows("table", range(6)), tiny_rows("table", range(10, 30)))
    done = unlearn(task, request, "amnesiac", settings={"max_steps": 1})
    assert done.training is not None
    union = task.encode(request.retain) + wrong_classes(task.encode(request.forget), 3, "once", 0)
    task.model.train()
    expected = float(task.statistics(union).nll.mean().detach())
    assert done.training.history[0]["loss"] == pytest.approx(expected, rel=1e-5)


def test_the_forget_set_is_unlearned_and_the_rest_kept(tiny_predictor: Any, tiny_rows: Any) -> None:
    task = tiny_predictor("table")
    others = tiny_rows("table", range(30)).select([i for i in range(30) if i % 3 != 1])
    request = DeletionRequest(tiny_rows("table", range(1, 28, 3)), others)
    settings = {"epochs": 60, "learning_rate": 1e-2, "batch_size": 16}
    new = unlearn(task, request, "amnesiac", settings=settings).model

    def accuracy(role: str) -> float:
        stats = new.statistics(new.encode(getattr(request, role)))
        return float((stats.logits.argmax(-1) == stats.targets).float().mean())

    assert accuracy("forget") < 0.3
    assert accuracy("retain") > 0.8
    assert torch.isfinite(new.statistics(new.encode(request.forget)).nll).all()
