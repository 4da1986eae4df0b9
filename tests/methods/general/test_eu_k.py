from __future__ import annotations

from typing import Any

import pytest
import torch

from expunge.methods.base import Run, settle
from expunge.methods.general.eu_k import EUK
from expunge.methods.run import unlearn
from expunge.requests.request import DeletionRequest
from expunge.selections.layers import last_layers

SETTINGS = {"k": 2, "epochs": 2, "learning_rate": 1e-2, "weight_decay": 0.3, "warmup": 0.0}


def test_only_the_last_layers_move(tiny_predictor: Any, tiny_rows: Any) -> None:
    task = tiny_predictor("resnet")
    request = DeletionRequest(tiny_rows("resnet", range(6)), tiny_rows("resnet", range(10, 30)))
    before = {name: p.clone() for name, p in task.named_parameters()}
    new = unlearn(task, request, "eu_k", settings=SETTINGS).model
    moving = last_layers(task, 2)
    assert 0 < len(moving) < len(before)
    for name, p in new.named_parameters():
        assert torch.equal(p, before[name]) == (name not in moving), name
        assert p.requires_grad


def test_they_start_from_fresh_weights(tiny_predictor: Any, tiny_rows: Any) -> None:
    task = tiny_predictor("table")
    request = DeletionRequest(tiny_rows("table", range(6)), tiny_rows("table", range(10, 30)))
    with torch.no_grad():
        for p in task.head_parameters().values():
            p += 100.0  # what no training from fresh weights leads to
    new = unlearn(task, request, "eu_k", settings={**SETTINGS, "k": 1}).model
    assert all(p.abs().max() < 10 for p in new.head_parameters().values())


@pytest.mark.parametrize("method", ["eu_k", "retrain"])
def test_fresh_weights_are_trained_although_they_are_beyond_a_target(
    method: str, tiny_predictor: Any, tiny_rows: Any
) -> None:
    task = tiny_predictor("table")
    request = DeletionRequest(tiny_rows("table", range(6)), tiny_rows("table", range(10, 30)))
    settings = {**SETTINGS, "stop": {"every": 1, "forget_target": 1e-3}}
    settings.pop("k" if method == "retrain" else "", None)
    training = unlearn(task, request, method, settings=settings).training
    assert training is not None
    assert (training.steps, training.stop_reason) == (2, "all steps done")


def test_batch_statistics_start_again_with_their_layer(tiny_predictor: Any, tiny_rows: Any) -> None:
    task = tiny_predictor("module")
    request = DeletionRequest(tiny_rows("module", range(6)), tiny_rows("module", range(10, 30)))
    task.model[1].running_mean.fill_(100.0)  # what it learned of everything
    started = {}
    for k in (2, 3):
        method, train = settle(EUK, {**SETTINGS, "k": k})
        started[k] = method.start(task, Run(train=train)).model[1]  # type: ignore[attr-defined]
    assert bool((started[2].running_mean == 100.0).all())
    assert bool((started[3].running_mean == 0.0).all())
    assert bool((started[3].running_var == 1.0).all())
    assert bool((task.model[1].running_mean == 100.0).all())
    unlearn(task, request, "eu_k", settings={**SETTINGS, "k": 3})
