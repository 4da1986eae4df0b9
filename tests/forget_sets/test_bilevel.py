"""The formulas of the search: against a brute-force projection, full autograd and finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch import Tensor

from expunge.forget_sets.bilevel import (
    loss_weights,
    project,
    unit_losses,
    unrolled_gradient,
    upper_objective,
    upper_step,
)

numbers = st.lists(st.floats(-5, 5, allow_nan=False, width=32), min_size=2, max_size=8)


@given(numbers, st.floats(0, 1))
def test_a_projection_is_feasible_and_no_feasible_point_is_nearer(values: list[float], share: float) -> None:
    a = torch.tensor(values, dtype=torch.float64)
    total = share * len(values)
    found = project(a, total)
    assert float(found.min()) >= 0
    assert float(found.max()) <= 1
    assert float(found.sum()) == pytest.approx(total, abs=1e-9)
    # (a - found) . (other - found) <= 0 for every feasible point is what makes it the nearest.
    dice = np.random.default_rng(0)
    for _ in range(20):
        other = project(torch.tensor(dice.normal(size=len(values)) * 3), total)
        assert float((a - found) @ (other - found)) <= 1e-7


def test_a_projection_is_what_a_solver_finds() -> None:
    a = np.array([0.9, 0.1, 1.7, -0.4, 0.5])
    solved = minimize(
        lambda w: ((w - a) ** 2).sum(), np.full(5, 0.4), bounds=[(0, 1)] * 5, method="SLSQP",
        constraints={"type": "eq", "fun": lambda w: w.sum() - 2}, options={"ftol": 1e-14},
    )  # fmt: skip
    assert project(torch.tensor(a), 2).numpy() == pytest.approx(solved.x, abs=1e-6)


def test_what_cannot_be_projected_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot sum to 3"):
        project(torch.zeros(2, dtype=torch.float64), 3)
    with pytest.raises(ValueError, match="finite"):
        project(torch.tensor([0.0, float("nan")], dtype=torch.float64), 1)


def test_factors_of_the_losses_by_hand() -> None:
    weights, units = torch.tensor([0.25, 1.0]), torch.tensor([0, 1, 0])
    assert loss_weights(weights, units).tolist() == [0.75, 0.0, 0.75]
    assert loss_weights(weights, units, ascent=1.0).tolist() == [0.5, -1.0, 0.5]


def test_losses_of_units_are_means() -> None:
    losses = torch.tensor([1.0, 2.0, 6.0], dtype=torch.float64)
    assert unit_losses(losses, torch.tensor([0, 1, 1]), 2).tolist() == [1.0, 4.0]


def test_steps_go_towards_low_losses_or_high_ones() -> None:
    weights = torch.full((4,), 0.5, dtype=torch.float64)
    losses = torch.tensor([0.0, 1.0, 2.0, 3.0], dtype=torch.float64)
    worst = upper_step(weights, losses, rate=0.1, ridge=0, total=2)
    easiest = upper_step(weights, losses, rate=0.1, ridge=0, total=2, easiest=True)
    assert worst.tolist() == pytest.approx([0.65, 0.55, 0.45, 0.35])
    assert easiest.tolist() == pytest.approx([0.35, 0.45, 0.55, 0.65])
    spread = torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    # The ridge pulls all weights together: by 2 * ridge * rate of their own size.
    assert upper_step(spread, 0 * losses, rate=1, ridge=0.1, total=2).tolist() == pytest.approx([0.9, 0.9, 0.1, 0.1])


def test_the_reference_turns_the_sign_of_the_ridge_for_the_easiest_set() -> None:
    weights, losses = torch.tensor([0.7, 0.6, 0.4, 0.3], dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    steps = [
        upper_step(weights, losses, rate=1, ridge=0.1, total=2, easiest=easiest, parity=parity).tolist()
        for easiest, parity in ((False, False), (False, True), (True, False), (True, True))
    ]
    together = [0.5 + 0.8 * (w - 0.5) for w in weights.tolist()]
    apart = [0.5 + 1.2 * (w - 0.5) for w in weights.tolist()]
    assert steps[:3] == [pytest.approx(together)] * 3
    assert steps[3] == pytest.approx(apart)


class Problem:
    """A small smooth problem in float64: logistic losses of a two-layer net."""

    def __init__(self, steps: int = 4, rate: float = 0.3):
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(6, 3, generator=generator, dtype=torch.float64)
        self.y = torch.tensor([0, 1, 0, 1, 1, 0])
        self.theta = [torch.randn(3, 4, generator=generator, dtype=torch.float64),
                      torch.randn(4, 2, generator=generator, dtype=torch.float64)]  # fmt: skip
        self.w = torch.rand(6, generator=generator, dtype=torch.float64)
        self.batches = [torch.arange(6)[k % 2 :: 2] for k in range(steps)]
        self.rate = rate

    def losses(self, theta: list[Tensor], rows: Tensor) -> Tensor:
        logits = torch.tanh(self.x[rows] @ theta[0]) @ theta[1]
        return torch.nn.functional.cross_entropy(logits, self.y[rows], reduction="none")

    def step_loss(self, rows: Tensor):
        return lambda theta, w: ((1 - w[rows]) * self.losses(list(theta), rows)).mean()

    def objective(self, w: Tensor) -> Tensor:
        """The whole of it in one graph."""
        theta = [p.clone().requires_grad_() for p in self.theta]
        for rows in self.batches:
            grads = torch.autograd.grad(self.step_loss(rows)(theta, w), theta, create_graph=True)
            theta = [p - self.rate * g for p, g in zip(theta, grads, strict=True)]
        return upper_objective(w, self.losses(theta, torch.arange(6)))

    def ours(self) -> Tensor:
        path, theta = [], [p.clone() for p in self.theta]
        for rows in self.batches:
            path.append(theta)
            own = [p.detach().requires_grad_() for p in theta]
            grads = torch.autograd.grad(self.step_loss(rows)(own, self.w), own)
            theta = [p - self.rate * g for p, g in zip(theta, grads, strict=True)]
        own = [p.detach().requires_grad_() for p in theta]
        losses = self.losses(own, torch.arange(6))
        outer = torch.autograd.grad(upper_objective(self.w, losses), own)
        steps = [self.step_loss(rows) for rows in self.batches]
        return losses.detach() + unrolled_gradient(path, steps, self.rate, self.w, outer)


def test_going_back_through_the_steps_is_the_gradient_of_the_whole() -> None:
    problem = Problem()
    w = problem.w.clone().requires_grad_()
    (whole,) = torch.autograd.grad(problem.objective(w), w)
    assert torch.allclose(problem.ours(), whole, atol=1e-12)


def test_going_back_through_the_steps_is_what_finite_differences_say() -> None:
    problem, eps = Problem(), 1e-5
    for k in range(6):
        up, down = problem.w.clone(), problem.w.clone()
        up[k] += eps
        down[k] -= eps
        slope = (problem.objective(up) - problem.objective(down)) / (2 * eps)
        assert float(problem.ours()[k].detach()) == pytest.approx(float(slope.detach()), abs=1e-7)


def test_without_steps_nothing_flows_back() -> None:
    problem = Problem(steps=0)
    assert torch.equal(unrolled_gradient([], [], 0.1, problem.w, problem.theta), torch.zeros(6, dtype=torch.float64))
