from __future__ import annotations

from typing import Any

import pytest
import torch

from expunge.methods.general.l1_sparse import L1, L1SparseConfig
from expunge.methods.run import unlearn
from expunge.requests.request import DeletionRequest
from expunge.selections.random import Random, RandomConfig


@pytest.mark.parametrize("given", [True, False])
def test_the_gradient_is_that_of_the_norm(given: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = {"a": torch.randn(3, 2, generator=generator), "b": torch.randn(4, generator=generator)}
    weights["b"][0] = 0.0
    for weight in weights.values():
        weight.requires_grad_(True)
    norm = sum(weight.abs().sum() for weight in weights.values())
    expected = torch.autograd.grad(0.01 * norm, list(weights.values()))  # type: ignore[operator]
    before = {name: torch.ones_like(w) if given else None for name, w in weights.items()}
    for name, weight in weights.items():
        weight.grad = before[name]
    value = L1(L1SparseConfig(gamma=0.01)).add_gradient(weights, 0.0)
    assert float(value) == pytest.approx(float(0.01 * norm))  # type: ignore[arg-type]
    for gradient, weight in zip(expected, weights.values(), strict=True):
        torch.testing.assert_close(weight.grad, gradient + (1.0 if given else 0.0))


def test_gamma_falls_to_zero_before_the_free_share() -> None:
    falling = L1(L1SparseConfig(gamma=0.1, free_share=0.5))
    assert [falling.gamma(d) for d in (0.0, 0.25, 0.5, 0.9)] == pytest.approx([0.1, 0.05, 0.0, 0.0])
    assert L1(L1SparseConfig(gamma=0.1)).gamma(0.5) == pytest.approx(0.05)
    assert L1(L1SparseConfig(gamma=0.1, constant=True)).gamma(0.9) == 0.1


def test_weights_become_smaller_and_the_penalty_is_logged(tiny_predictor: Any, tiny_rows: Any) -> None:
    task = tiny_predictor("table")
    request = DeletionRequest(tiny_rows("table", range(6)), tiny_rows("table", range(10, 30)))
    norms = []
    for gamma in (1e-9, 0.05):
        settings = {"gamma": gamma, "constant": True, "epochs": 40, "learning_rate": 5e-3, "warmup": 0.0}
        done = unlearn(task, request, "l1_sparse", settings=settings)
        assert done.training is not None
        record = done.training.history[0]
        first = sum(float(p.abs().sum()) for _, p in task.named_parameters())
        assert record["loss/l1"] == pytest.approx(gamma * first, rel=1e-4)
        assert record["loss"] == pytest.approx(record["loss/l1"] + record["loss/retain_nll"])
        norms.append(sum(float(p.abs().sum()) for _, p in done.model.named_parameters()))
    assert norms[1] < 0.8 * norms[0]


def test_proximal_steps_end_exactly_at_zero_and_respect_a_selection(tiny_predictor: Any, tiny_rows: Any) -> None:
    task = tiny_predictor("table")
    request = DeletionRequest(tiny_rows("table", range(6)), tiny_rows("table", range(10, 30)))
    settings = {"gamma": 0.05, "constant": True, "epochs": 60, "learning_rate": 0.2, "optimizer": "sgd", "warmup": 0.0}

    def zeros(model: Any) -> int:
        return sum(int((p == 0).sum()) for _, p in model.named_parameters())

    plain = unlearn(task, request, "l1_sparse", settings=settings).model
    proximal = unlearn(task, request, "l1_sparse", settings={**settings, "proximal": True}).model
    assert zeros(proximal) > zeros(plain) + 20
    chosen = Random(RandomConfig(share=0.5)).build(task, request, 0)
    select = {"select.by": "random", "select.share": 0.5}
    masked = unlearn(task, request, "l1_sparse", settings={**settings, "proximal": True, **select}).model
    for (name, new), (_, old) in zip(masked.named_parameters(), task.named_parameters(), strict=True):
        part = chosen[name]
        assert part is not None
        assert torch.equal(new[~part], old[~part])
        assert not torch.equal(new[part], old[part])


def test_parity_changes_gamma_between_epochs_alone(tiny_predictor: Any, tiny_rows: Any) -> None:
    stepped = L1(L1SparseConfig(gamma=0.1, parity=True), epochs=4)
    assert [stepped.gamma(d) for d in (0.0, 0.24, 0.25, 0.74, 0.99)] == pytest.approx([0.1, 0.1, 0.075, 0.05, 0.025])
    # Ten steps of three epochs each: float rounding must not put a step into the epoch before.
    third = L1(L1SparseConfig(gamma=0.3, parity=True), epochs=3)
    assert [third.gamma(step / 30) for step in (9, 10, 19, 20)] == pytest.approx([0.3, 0.2, 0.2, 0.1])
    request = DeletionRequest(tiny_rows("table", range(6)), tiny_rows("table", range(10, 30)))
    task = tiny_predictor("table")
    settings = {"gamma": 0.01, "parity": True, "epochs": 2, "batch_size": 5, "learning_rate": 1e-9, "warmup": 0.0}
    done = unlearn(task, request, "l1_sparse", settings=settings)
    assert done.training is not None
    norm = sum(float(p.abs().sum()) for _, p in task.named_parameters())
    values = [record["loss/l1"] for record in done.training.history]
    assert values == pytest.approx([0.01 * norm] * 4 + [0.005 * norm] * 4, rel=1e-4)
