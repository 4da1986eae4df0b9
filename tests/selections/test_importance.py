"""Second moments of gradients against one example at a time, by plain autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F

from expunge.selections import importance, layer_gradients
from expunge.selections.importance import squared_gradients
from expunge.tasks.predictor import Predictor

NAMES = ("resnet", "vit", "convnext", "swin", "module", "bert", "gpt2", "table", "image-regressor", "table-regressor")


def one_by_one(task: Any, encoded: Any, losses: Callable[[torch.Tensor, Any], list[tuple[torch.Tensor, float]]]) -> Any:
    """Mean over examples of the weighted squared gradients of each example's losses."""
    task.model.eval()
    parameters = dict(task.named_parameters())
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for i in range(len(encoded)):
        part = encoded.take([i])
        outputs = task.predict(task.batch(part))
        for loss, weight in losses(outputs, part.targets):
            found = torch.autograd.grad(loss, list(parameters.values()), retain_graph=True, allow_unused=True)
            for name, gradient in zip(parameters, found, strict=True):
                if gradient is not None:
                    total[name] += weight * gradient.square() / len(encoded)
    return total


@pytest.mark.parametrize("name", NAMES)
def test_per_example_squares_are_those_of_a_loop(tiny_predictor: Any, tiny_rows: Any, name: str) -> None:
    task = tiny_predictor(name)
    encoded = task.encode(tiny_rows(name, range(5)))
    expected = one_by_one(task, encoded, lambda outputs, y: [(task.losses(outputs, y).sum(), 1.0)])
    found = squared_gradients(task, encoded, dict(task.named_parameters()))
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, atol=1e-6, rtol=2e-3)


@pytest.mark.parametrize("name", ["resnet", "table", "bert"])
def test_the_fisher_sums_over_the_models_own_labels(tiny_predictor: Any, tiny_rows: Any, name: str) -> None:
    task = tiny_predictor(name)
    encoded = task.encode(tiny_rows(name, range(4)))

    def losses(outputs: torch.Tensor, _: Any) -> list[tuple[torch.Tensor, float]]:
        shares = torch.softmax(outputs.detach(), -1)[0]
        return [(F.cross_entropy(outputs, torch.tensor([c])), float(shares[c])) for c in range(len(shares))]

    found = squared_gradients(task, encoded, dict(task.named_parameters()), kind="fisher", seed=3)
    for key, value in one_by_one(task, encoded, losses).items():
        torch.testing.assert_close(found[key], value, atol=1e-6, rtol=2e-3)


def test_random_directions_have_the_information_of_the_outputs_as_their_covariance() -> None:
    p = torch.tensor([0.7, 0.2, 0.09, 0.009, 0.001], dtype=torch.float64)
    signs = torch.randint(0, 2, (200_000, 5), generator=torch.Generator().manual_seed(0))
    drawn = importance._directions(p.expand(200_000, 5), signs)
    expected = torch.diag(p) - torch.outer(p, p)
    torch.testing.assert_close(drawn.T @ drawn / len(drawn), expected, atol=2e-3, rtol=0.0)
    # No outlier: rare outcomes are part of every draw, where drawn labels would miss them in most.
    assert drawn[:, 4].abs().min() > 0.02


@pytest.mark.parametrize("name", ["resnet", "table", "bert", "swin"])
def test_the_fisher_of_many_classes_is_estimated_without_bias(tiny_predictor: Any, tiny_rows: Any, name: str) -> None:
    task = tiny_predictor(name)
    encoded = task.encode(tiny_rows(name, range(4)))
    weights = dict(list(task.named_parameters())[-2:])
    exact = squared_gradients(task, encoded, weights, kind="fisher")
    enough = squared_gradients(task, encoded, weights, kind="fisher", passes=task.outcomes)
    drawn = [squared_gradients(task, encoded, weights, kind="fisher", passes=2, seed=s) for s in range(60)]
    for key, value in exact.items():
        assert torch.equal(enough[key], value)
        found = torch.stack([one[key].sum() for one in drawn])
        error = found.std() / len(found) ** 0.5
        assert abs(found.mean() - value.sum()) < 4 * error + 1e-9, key
        assert found.std() > 0
    again = squared_gradients(task, encoded, weights, kind="fisher", passes=2, seed=0)
    assert all(torch.equal(again[key], drawn[0][key]) for key in weights)
    turned = squared_gradients(task, encoded.take([2, 0, 3, 1]), weights, kind="fisher", passes=2, seed=0)
    for key in weights:
        torch.testing.assert_close(turned[key], again[key], msg="the order of examples decides nothing")


def test_outputs_are_computed_only_where_they_matter(tiny_predictor: Any, tiny_rows: Any) -> None:
    task = tiny_predictor("swin")  # has weights of which no layer rule knows, so that examples are mapped
    encoded = task.encode(tiny_rows("swin", range(4)))
    with patch.object(importance, "_outputs", side_effect=AssertionError("a forward pass in vain")):
        squared_gradients(task, encoded, dict(task.named_parameters()))


def test_the_fisher_of_numbers_is_that_of_their_gaussian(tiny_predictor: Any, tiny_rows: Any) -> None:
    """The expected squared gradient of the loss over targets drawn from the Gaussian that the loss belongs to."""
    task = tiny_predictor("table-regressor")
    encoded = task.encode(tiny_rows("table-regressor", range(1)))
    name, weight = list(task.named_parameters())[-1]
    exact = squared_gradients(task, encoded, {name: weight}, kind="fisher")[name]
    generator = torch.Generator().manual_seed(0)
    outputs = task.predict(task.batch(encoded)).detach()
    draws = outputs + (outputs.shape[1] / 2) ** 0.5 * torch.randn(4000, outputs.shape[1], generator=generator)
    many = encoded.take([0] * 4000).with_targets(draws)
    found = squared_gradients(task, many, {name: weight})[name]
    torch.testing.assert_close(found, exact, rtol=0.1, atol=1e-4)


@pytest.mark.parametrize("name", ["resnet", "bert", "gpt2", "swin"])
def test_memory_bounds_change_nothing(
    tiny_predictor: Any, tiny_rows: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = tiny_predictor(name)
    encoded = task.encode(tiny_rows(name, range(7)))
    parameters = dict(task.named_parameters())
    whole = squared_gradients(task, encoded, parameters)
    monkeypatch.setattr(importance, "MOST", 3)
    monkeypatch.setattr(layer_gradients, "CACHED", 1)
    for key, value in squared_gradients(task, encoded, parameters).items():
        torch.testing.assert_close(value, whole[key], atol=1e-7, rtol=1e-3)
    assert all(p.grad is None for p in parameters.values())


class Recurrent(torch.nn.Module):
    """A layer that ``torch.func`` cannot map, between two that it can."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.states = torch.nn.Linear(1, 2), torch.nn.GRU(2, 3, batch_first=True)
        self.head = torch.nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.states(self.into(x[..., None]))[0][:, -1])
        return out


@pytest.mark.parametrize("kind", ["example", "fisher"])
def test_what_cannot_be_mapped_is_taken_one_example_at_a_time(tiny_predictor: Any, tiny_rows: Any, kind: Any) -> None:
    given = tiny_predictor("table")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        task = Predictor(Recurrent(), given.inputs, given.outcome)
    encoded = task.encode(tiny_rows("table", range(7)))

    def losses(outputs: torch.Tensor, y: torch.Tensor) -> list[tuple[torch.Tensor, float]]:
        if kind == "example":
            return [(task.losses(outputs, y).sum(), 1.0)]
        shares = torch.softmax(outputs.detach(), -1)[0]
        return [(F.cross_entropy(outputs, torch.tensor([c])), float(shares[c])) for c in range(3)]

    found = squared_gradients(task, encoded, dict(task.named_parameters()), kind=kind)
    for key, value in one_by_one(task, encoded, losses).items():
        torch.testing.assert_close(found[key], value, atol=1e-7, rtol=1e-4)


def test_batches_square_their_mean(tiny_predictor: Any, tiny_rows: Any) -> None:
    task = tiny_predictor("table")
    encoded = task.encode(tiny_rows("table", range(5)))
    parameters = dict(task.named_parameters())
    expected = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for batch in ([0, 1, 2], [3, 4]):
        part = encoded.take(batch)
        loss = task.losses(task.predict(task.batch(part)), part.targets).mean()
        for name, g in zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True):
            expected[name] += g.square() / 2
    found = squared_gradients(task, encoded, parameters, kind="batch", batch_size=3)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, atol=1e-7, rtol=1e-4)
    alone = squared_gradients(task, encoded, parameters, kind="batch", batch_size=1)
    each = squared_gradients(task, encoded, parameters)
    for key, value in each.items():
        torch.testing.assert_close(alone[key], value, atol=1e-7, rtol=1e-4)


def test_language_models_are_measured_per_sequence(make_task: Any, request_: Any) -> None:
    task = make_task()
    task.model.train()
    encoded = task.encode(request_.forget)
    parameters = dict(task.named_parameters())
    found = squared_gradients(task, encoded, parameters)
    task.model.eval()
    expected = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for i in range(len(encoded)):
        loss = task.statistics(encoded.take([i])).mean_nll.sum()
        for name, g in zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True):
            expected[name] += g.square() / len(encoded)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, atol=1e-8, rtol=1e-3)
    drawn = [squared_gradients(task, encoded, parameters, kind="fisher", seed=s) for s in (1, 1, 2)]
    assert all(torch.equal(drawn[0][n], drawn[1][n]) for n in parameters)
    assert any(not torch.equal(drawn[0][n], drawn[2][n]) for n in parameters)
    # What is drawn for an example does not depend on where it stands.
    backwards = encoded.take(range(len(encoded))[::-1])
    again = squared_gradients(task, backwards, parameters, kind="fisher", seed=1)
    for key, value in drawn[0].items():
        torch.testing.assert_close(again[key], value, atol=1e-8, rtol=1e-3)
