from __future__ import annotations

from typing import Any

import pytest
import torch

from expunge.methods.classification.boundary_shrink import adversarial_step, nearest_classes, neighbour_class, rounded
from expunge.methods.run import unlearn
from expunge.requests.request import DeletionRequest


def test_the_true_class_is_never_its_own_neighbour() -> None:
    logits, true = torch.tensor([[5.0, 1.0, 2.0], [0.0, 3.0, 1.0]]), torch.tensor([0, 0])
    assert neighbour_class(logits, true).tolist() == [2, 1]
    assert neighbour_class(logits, true, parity=True).tolist() == [0, 1]


def test_the_step_stays_within_the_pixels() -> None:
    x, g = torch.tensor([0.05, 0.5, 0.97]), torch.tensor([-3.0, 2.0, 1.0])
    moved = adversarial_step(x, g, 0.1, torch.tensor(0.0), torch.tensor(1.0))
    torch.testing.assert_close(moved, torch.tensor([0.0, 0.6, 1.0]))


@pytest.mark.parametrize("name", ["resnet", "vit", "module"])
def test_neighbours_are_those_of_one_image_at_a_time(tiny_predictor: Any, tiny_rows: Any, name: str) -> None:
    task = tiny_predictor(name)
    encoded = task.encode(tiny_rows(name, range(5)))
    found = nearest_classes(task, encoded, 0.1)
    assert (found != encoded.targets).all()
    for i in range(5):
        part = encoded.take([i])
        pixels = task.batch(part)["pixel_values"].requires_grad_(True)
        loss = task.losses(task.predict({"pixel_values": pixels}), part.targets).sum()
        (gradient,) = torch.autograd.grad(loss, pixels)
        mean, std = (torch.tensor(v).reshape(-1, 1, 1) for v in (task.inputs.mean, task.inputs.std))
        raw = ((pixels * std + mean) + 0.1 * gradient.sign()).clamp(0, 1)
        logits = task.predict({"pixel_values": (raw - mean) / std})[0].detach()
        logits[part.targets[0]] = -torch.inf
        assert int(logits.argmax()) == int(found[i])


def test_training_sends_images_there(tiny_predictor: Any, tiny_rows: Any) -> None:
    task = tiny_predictor("module")
    request = DeletionRequest(tiny_rows("module", range(6)))
    expected = nearest_classes(task, task.encode(request.forget), 0.1)
    new = unlearn(task, request, "boundary_shrink", settings={"epochs": 60, "learning_rate": 3e-3, "warmup": 0.0})
    found = new.model.statistics(new.model.encode(request.forget)).logits.argmax(-1)
    assert (found == expected).float().mean() > 0.8
    assert new.config["neighbours"] == {"unchanged": 0}


def test_parity_rounds_the_perturbed_image_to_256_levels(tiny_predictor: Any, tiny_rows: Any) -> None:
    mean, std = torch.tensor([[0.5], [0.25]]), torch.tensor([[0.25], [0.5]])
    raw = torch.tensor([[0.0, 0.5, 1.0], [0.11, 0.123, 0.999]])
    levels = (rounded((raw - mean) / std, mean, std) * std + mean) * 255
    torch.testing.assert_close(levels, torch.tensor([[0.0, 128.0, 255.0], [28.0, 31.0, 255.0]]))
    task = tiny_predictor("module")
    encoded = task.encode(tiny_rows("module", range(5)))
    asked: list[torch.Tensor] = []
    predict = task.predict
    task.predict = lambda inputs: asked.append(inputs["pixel_values"].detach()) or predict(inputs)
    nearest_classes(task, encoded, 0.0777, parity=True)
    mean, std = (torch.tensor(v).reshape(-1, 1, 1) for v in (task.inputs.mean, task.inputs.std))
    moved = (asked[-1] * std + mean) * 255
    torch.testing.assert_close(moved, moved.round(), atol=1e-3, rtol=0)
