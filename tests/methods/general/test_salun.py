from __future__ import annotations

from typing import Any

import pytest
import torch

from expunge.errors import BadInput
from expunge.methods.general.salun import Soft
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


def moved(task: Any, new: Any) -> dict[str, torch.Tensor]:
    return {n: p != q for (n, p), (_, q) in zip(new.named_parameters(), task.named_parameters(), strict=True)}


def test_parity_lets_weight_decay_move_the_rest(tiny_predictor: Any, tiny_rows: Any) -> None:
    request = DeletionRequest(tiny_rows("table", range(6)), tiny_rows("table", range(10, 30)))
    task = tiny_predictor("table")
    mask = Saliency(SaliencyConfig(share=0.3, parity=True)).build(task, request, 0)

    def outside(**more: Any) -> int:
        new = unlearn(task, request, "salun", settings={**SETTINGS, "parity": True, **more}).model
        return sum(int(part[~mask[n]].sum()) for n, part in moved(task, new).items())  # type: ignore[operator]

    # The drift that was measured in the authors' code: with weight decay alone.
    assert outside() > 0
    assert outside(weight_decay=0.0) == 0


def test_soft_takes_the_proximal_step_of_the_distance() -> None:
    generator = torch.Generator().manual_seed(0)
    before = torch.randn(50, generator=generator)
    weight = before + 0.1 * torch.randn(50, generator=generator)
    rate, beta = 0.5, 0.1
    # The minimiser of 1/2 |x - w|^2 + rate beta |x - before| by brute force over a grid.
    grid = torch.linspace(-4, 4, 160_001)[:, None]
    costs = 0.5 * (grid - weight[None, :5]).square() + rate * beta * (grid - before[None, :5]).abs()
    expected = grid[costs.argmin(0), 0]
    moved_weight = weight.clone()
    penalty = Soft({"w": before}, beta)
    assert float(penalty.add_gradient({"w": weight}, 0.0)) == pytest.approx(beta * float((weight - before).abs().sum()))
    penalty.after_step({"w": moved_weight}, rate, 0.0)
    torch.testing.assert_close(moved_weight[:5], expected, atol=1e-4, rtol=0)
    assert torch.equal(
        moved_weight[(weight - before).abs() < rate * beta], before[(weight - before).abs() < rate * beta]
    )


def test_soft_leaves_more_weights_where_they_were_the_stronger_it_is(tiny_predictor: Any, tiny_rows: Any) -> None:
    request = DeletionRequest(tiny_rows("table", range(6)), tiny_rows("table", range(10, 30)))
    task, shares = tiny_predictor("table"), []
    for beta in (1e-6, 0.1, 1.0):
        settings = {**SETTINGS, "optimizer": "sgd", "weight_decay": 0.0, "soft": beta}
        new = unlearn(task, request, "salun", settings=settings).model
        parts = moved(task, new).values()
        shares.append(sum(int(p.sum()) for p in parts) / sum(p.numel() for p in parts))
    assert shares[0] > shares[1] > shares[2]


@pytest.mark.parametrize("own", [{"soft": 0.1}, {"parity": True}])
def test_what_stands_in_the_masks_place_needs_the_weights_themselves(
    tiny_predictor: Any, tiny_rows: Any, own: Any
) -> None:
    request = DeletionRequest(tiny_rows("table", range(6)), tiny_rows("table", range(10, 30)))
    with pytest.raises(BadInput, match="whole weights"):
        unlearn(tiny_predictor("table"), request, "salun", settings={**SETTINGS, **own, "lora.rank": 2})
