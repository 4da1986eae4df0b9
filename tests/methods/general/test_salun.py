from __future__ import annotations

from typing import Any

import torch

from expunge.methods.run import unlearn
from expunge.requests.request import DeletionRequest
from expunge.selections.saliency import Saliency, SaliencyConfig

SETTINGS = {"share": 0.3, "epochs": 4, "learning_rate": 1e-2, "weight_decay": 0.3, "warmup": 0.0}


def test_only_the_salient_weights_move_whatever_the_decay(tiny_predictor: Any, tiny_rows: Any) -> None:
    task = tiny_predictor("resnet")
    request = DeletionRequest(tiny_rows("resnet", range(6)), tiny_rows("resnet", range(10, 30)))
    mask = Saliency(SaliencyConfig(share=0.3)).build(task, request, 0)
    before = {name: p.clone() for name, p in task.named_parameters()}
    new = unlearn(task, request, "salun", settings=SETTINGS)
    for name, p in new.model.named_parameters():
        part = mask[name]
        assert part is not None
        assert torch.equal(p[~part], before[name][~part])
    assert new.train is not None
    assert new.train["select"] == {"by": "saliency", "share": 0.3}


def test_it_is_random_labelling_under_a_selection(tiny_predictor: Any, tiny_rows: Any) -> None:
    request = DeletionRequest(tiny_rows("table", range(6)), tiny_rows("table", range(10, 30)))
    one = unlearn(tiny_predictor("table"), request, "salun", settings=SETTINGS).model
    composed = {**SETTINGS, "select.by": "saliency", "select.share": 0.3, "retain": "nll", "resample": "epoch"}
    composed.pop("share")
    two = unlearn(tiny_predictor("table"), request, "random_label", settings=composed).model
    for (_, a), (_, b) in zip(one.named_parameters(), two.named_parameters(), strict=True):
        assert torch.equal(a, b)


def test_another_selection_may_be_put_in_its_place(tiny_predictor: Any, tiny_rows: Any) -> None:
    request = DeletionRequest(tiny_rows("table", range(6)), tiny_rows("table", range(10, 30)))
    settings = {**SETTINGS, "select.by": "random", "select.share": 0.3}
    done = unlearn(tiny_predictor("table"), request, "salun", settings=settings)
    assert done.train is not None
    assert done.train["select"]["by"] == "random"
