"""Products with every example's gradient against the gradients themselves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from expunge.selections import projections
from expunge.selections.importance import differentiable
from expunge.selections.layer_gradients import NotApart, layers_of, recording
from expunge.selections.projections import projected_gradients


def expected(task: Any, encoded: Any, parameters: Any, directions: Any) -> torch.Tensor:
    rows = []
    for i in range(len(encoded)):
        loss = task.statistics(encoded.take([i])).mean_nll.sum()
        found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        rows.append([
            sum(float((g * u[name]).sum()) for g, name in zip(found, parameters, strict=True) if g is not None)
            for u in directions
        ])  # fmt: skip
    return torch.tensor(rows).T


def drawn(parameters: Any) -> list[dict[str, torch.Tensor]]:
    luck = torch.Generator().manual_seed(0)
    return [{name: torch.randn(p.shape, generator=luck) for name, p in parameters.items()} for _ in range(2)]


@pytest.mark.parametrize("name", ["resnet", "vit", "swin", "module", "bert", "gpt2", "table-regressor"])
def test_products_with_the_gradient_of_every_example(
    tiny_predictor: Any, tiny_rows: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = tiny_predictor(name)
    encoded, parameters = task.encode(tiny_rows(name, range(5))), dict(task.named_parameters())
    monkeypatch.setattr("expunge.selections.importance.MOST", 3)
    directions = drawn(parameters)
    with differentiable(task, parameters):
        found = projected_gradients(task, encoded, parameters, directions)
        torch.testing.assert_close(found, expected(task, encoded, parameters, directions), atol=1e-4, rtol=2e-3)


def test_language_models_take_the_second_derivative(make_task: Any, request_: Any) -> None:
    task = make_task()
    encoded, parameters = task.encode(request_.forget), dict(task.named_parameters())
    directions = drawn(parameters)
    with differentiable(task, parameters):
        found = projected_gradients(task, encoded, parameters, directions)
        torch.testing.assert_close(found, expected(task, encoded, parameters, directions), atol=1e-4, rtol=2e-3)


def test_layers_that_turn_out_otherwise_are_done_otherwise(
    tiny_predictor: Any, tiny_rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> Any:
        raise NotApart("for a test")

    task = tiny_predictor("table")
    encoded, parameters = task.encode(tiny_rows("table", range(4))), dict(task.named_parameters())
    directions = drawn(parameters)
    with differentiable(task, parameters):
        usual = projected_gradients(task, encoded, parameters, directions)
        monkeypatch.setattr(projections, "projections_of", refuse)
        torch.testing.assert_close(projected_gradients(task, encoded, parameters, directions), usual)


def test_padding_has_no_gradient() -> None:
    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.word = nn.Embedding(4, 3, padding_idx=0)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.word(x).sum(1)
            return out

    model, x = Bag(), torch.tensor([[0, 1], [2, 0], [3, 3]])
    parameters = dict(model.named_parameters())
    layers = layers_of(model, parameters, lambda size: model(x[:size]), 3)
    with recording(model, list(layers.owned)) as seen:
        outputs = model(x)
    call = seen["word"][0]
    assert call is not None
    found = projections.projections_of(call, torch.ones(3, 2, 3), {"weight": torch.full((4, 3), 2.0)})
    assert outputs.shape == (3, 3)
    assert found.tolist() == [6.0, 6.0, 12.0]
