from __future__ import annotations

from typing import Any

import pytest
import torch

from expunge.tasks.predictor import Predictor
from expunge.training.adversarial import Adversary, attacked, on_the_scale, projected, trained_anew
from expunge.training.settings import TrainSettings


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_changes_are_brought_back_to_the_ball(norm: Any) -> None:
    torch.manual_seed(0)
    delta = torch.randn(5, 2, 3) * torch.tensor([0.01, 0.1, 1.0, 10.0, 0.0]).view(-1, 1, 1)
    found = projected(delta, norm, 0.5)
    order = 2 if norm == "l2" else float("inf")
    lengths = found.flatten(1).norm(order, dim=1)
    assert (lengths <= 0.5 + 1e-6).all()
    inside = delta.flatten(1).norm(order, dim=1) <= 0.5
    assert torch.equal(found[inside], delta[inside])


def test_the_attack_on_a_linear_loss_is_known() -> None:
    w, x = torch.tensor([3.0, -4.0]), torch.tensor([[0.5, 0.5]])
    wide = torch.tensor(-9.0), torch.tensor(9.0)
    l2 = attacked(lambda v: w.expand_as(v), x, Adversary(norm="l2", eps=0.5, steps=4, step=0.5), *wide)
    torch.testing.assert_close(l2, x + 0.5 * w / 5)
    linf = attacked(lambda v: w.expand_as(v), x, Adversary(norm="linf", eps=0.1, steps=8, step=0.25), *wide)
    torch.testing.assert_close(linf, torch.tensor([[0.6, 0.4]]))
    bounded = attacked(
        lambda v: w.expand_as(v), x, Adversary(norm="linf", eps=0.7), torch.tensor(0.0), torch.tensor(1.0)
    )
    torch.testing.assert_close(bounded, torch.tensor([[1.0, 0.0]]))


def right(model: Predictor, encoded: Any, moved: float) -> float:
    """Accuracy on inputs that a step of a length in L2 along the gradient of the loss has moved."""
    model.model.eval()
    x = encoded.inputs.clone().requires_grad_(True)
    loss = model.losses(model.predict({"pixel_values": x}), encoded.targets).sum()
    (slope,) = torch.autograd.grad(loss, x)
    slope = slope / slope.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, 1, 1, 1)
    with torch.no_grad():
        said = model.predict({"pixel_values": x + moved * slope}).argmax(-1)
    return float((said == encoded.targets).float().mean())


def test_robust_training_withstands_what_plain_training_does_not(tiny_predictor: Any, tiny_rows: Any) -> None:
    task = tiny_predictor("module")
    encoded = on_the_scale(task.encode(tiny_rows("module", range(60))))
    assert encoded.inputs.dtype == torch.float32
    whole = task.encode(tiny_rows("module", range(60)))
    torch.testing.assert_close(task.batch(encoded)["pixel_values"], task.batch(whole)["pixel_values"])
    settings = TrainSettings(epochs=12, batch_size=16, learning_rate=1e-2, warmup=0.0, seed=1)
    plain = trained_anew(task, encoded, settings)
    robust = trained_anew(task, encoded, settings, Adversary(eps=2.0))
    assert type(robust) is Predictor
    assert right(plain, encoded, 0.0) > 0.95
    assert right(robust, encoded, 2.0) > right(plain, encoded, 2.0) + 0.05
    again = trained_anew(task, encoded, settings, Adversary(eps=2.0))
    assert all(torch.equal(a, b) for a, b in zip(robust.model.parameters(), again.model.parameters(), strict=True))
    assert robust.cost.forwards > plain.cost.forwards * 3
