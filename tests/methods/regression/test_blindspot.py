from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from expunge.methods.regression.blindspot import towards
from expunge.methods.run import unlearn
from expunge.requests.request import DeletionRequest

NAME = "table-regressor"


def test_distances_by_hand_and_shapes_that_would_broadcast_are_refused() -> None:
    stats: Any = SimpleNamespace(logits=torch.tensor([[1.0, 2.0], [0.0, 4.0]]))
    target = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    assert towards(stats, target, True).tolist() == [1.5, 2.0]
    assert towards(stats, target, False).tolist() == [2.5, 5.0]
    with pytest.raises(ValueError, match="differ in shape"):
        towards(stats, torch.zeros(2, 1), True)


def test_it_comes_nearer_to_the_proxy_on_the_forget_set(tiny_predictor: Any, tiny_rows: Any) -> None:
    task = tiny_predictor(NAME)
    everything = DeletionRequest(tiny_rows(NAME, range(90, 92)), tiny_rows(NAME, range(30)))
    fitting = {"epochs": 80, "learning_rate": 1e-2, "warmup": 0.0}
    task = unlearn(task, everything, "finetune", settings=fitting).model
    others = tiny_rows(NAME, range(30)).select([i for i in range(30) if i % 3 != 1])
    request = DeletionRequest(tiny_rows(NAME, range(1, 28, 3)), others)
    settings = {"epochs": 40, "learning_rate": 5e-3, "proxy_epochs": 20, "warmup": 0.0}
    done = unlearn(task, request, "blindspot", settings=settings)
    assert done.config["proxy"]["steps"] == 20
    assert done.config["proxy"]["retain_error"] < 1.0

    def error(model: Any) -> float:
        return float(model.statistics(model.encode(request.forget)).nll.mean().detach())

    assert error(done.model) > error(task)


def test_the_proxy_is_paid_for(tiny_predictor: Any, tiny_rows: Any) -> None:
    request = DeletionRequest(tiny_rows(NAME, range(4)), tiny_rows(NAME, range(4, 30)))
    costs = []
    for epochs in (1, 4):
        done = unlearn(tiny_predictor(NAME), request, "blindspot", settings={"epochs": 1, "proxy_epochs": epochs})
        assert done.training is not None
        costs.append(done.cost.backwards - done.training.cost.backwards)
    assert costs == [1, 4]  # one step an epoch
