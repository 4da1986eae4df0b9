"""The formulas of choosing a forget set by bi-level optimisation.

One weight ``w`` in [0, 1] per unit (an example, or a class) says how much of it is forgotten; the weights sum to the
size of the forget set. The *lower* problem unlearns: a few steps on the loss of what is kept, ``sum (1 - w_i) l_i``.
The *upper* problem moves the weights to units that the unlearned model still fits (worst case) or no longer fits
(easiest).

Source: Fan et al. 2024, Challenging Forgets (arXiv:2403.07362), section 4.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Parameters = Sequence[Tensor]
# (parameters, weights of the units) -> the loss that a step of the lower problem descends.
StepLoss = Callable[[Parameters, Tensor], Tensor]
BISECTIONS = 100


def project(values: Tensor, total: float) -> Tensor:
    """Return the point of ``{w : 0 <= w <= 1, sum w = total}`` that is nearest to ``values``.

    It is ``clip(values - mu, 0, 1)``, with ``mu`` found by bisection to the precision of float64.

    Args:
        values: (U,) float64.
        total: what the weights sum to, in [0, U].

    Raises:
        ValueError: no such weights exist, or a value is not finite.
    """
    if not 0 <= total <= len(values):
        raise ValueError(f"{len(values)} weights in [0, 1] cannot sum to {total}")
    if not bool(torch.isfinite(values).all()):
        raise ValueError("values must be finite")
    low, high = float(values.min()) - 1, float(values.max())
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if float((values - middle).clamp(0, 1).sum()) > total else (low, middle)
    return (values - (low + high) / 2).clamp(0, 1)


def loss_weights(weights: Tensor, units: Tensor, ascent: float = 0.0) -> Tensor:
    """Return the factor of each example's loss in the lower problem: ``1 - w - ascent * w`` of its unit.

    Args:
        weights: (U,) weights of the units.
        units: (B,) which unit each example belongs to.
        ascent: how much the loss of what is forgotten is ascended as well; 0 only leaves it out.
    """
    chosen = weights[units]
    return 1 - chosen - ascent * chosen


def unit_losses(losses: Tensor, units: Tensor, count: int) -> Tensor:
    """Return the mean loss of each unit, (U,), of examples' losses (N,)."""
    summed = torch.zeros(count, dtype=losses.dtype, device=losses.device).index_add(0, units, losses)
    return summed / torch.bincount(units, minlength=count)


def upper_objective(weights: Tensor, losses: Tensor) -> Tensor:
    """Return ``sum_u w_u L_u``: how badly the unlearned model fits what is forgotten, the mean times the size."""
    return (weights * losses).sum()


def upper_step(
    weights: Tensor,
    gradient: Tensor,
    *,
    rate: float,
    ridge: float,
    total: float,
    easiest: bool = False,
    parity: bool = False,
) -> Tensor:
    """Return the weights after one projected step of the upper problem.

    ``w <- Proj(w - rate * (g + 2 * ridge * w))``, with ``g`` negated where the easiest set is sought.

    Args:
        weights: (U,) before.
        gradient: (U,) of ``upper_objective``: the units' losses, plus what goes through the lower problem.
        rate, ridge: step length, and the weight of ``||w||^2``.
        total: size of the forget set.
        easiest: ascend instead.
        parity: as the reference, which turns the sign of the ridge too where the easiest set is sought, so that it
            drives weights apart.
    """
    towards = -gradient if easiest else gradient
    held = -ridge if easiest and parity else ridge
    return project(weights - rate * (towards + 2 * held * weights), total)


def unrolled_gradient(
    path: Sequence[Parameters], losses: Sequence[StepLoss], rate: float, weights: Tensor, outer: Parameters
) -> Tensor:
    """Return what ``upper_objective`` gains by the weights' effect on the unlearned parameters, (U,).

    The lower problem took the steps ``theta_{k+1} = theta_k - rate * grad L_k(theta_k, w)``. Going back through them
    with ``a = d objective / d theta_K``: each step adds ``-rate * (d/dw grad L_k) a`` and turns ``a`` into
    ``a - rate * H_k a``. Only products with ``a`` are formed; parameters are kept step by step, graphs are not. With
    steps along the sign of the gradient all of this is zero.

    Args:
        path: the parameters before each step.
        losses: ``L_k`` of each step.
        rate: of the steps.
        weights: (U,) weights of the units.
        outer: the gradient of the upper objective by the parameters after the last step.
    """
    adjoint = [part.detach().clone() for part in outer]
    total = torch.zeros_like(weights)
    for before, loss in zip(reversed(path), reversed(losses), strict=True):
        theta = [part.detach().requires_grad_() for part in before]
        own = weights.detach().requires_grad_()
        with torch.enable_grad():
            gradient = torch.autograd.grad(loss(theta, own), theta, create_graph=True, materialize_grads=True)
            product = sum((g * a).sum() for g, a in zip(gradient, adjoint, strict=True))
            if not isinstance(product, Tensor) or not product.requires_grad:
                continue  # a loss without curvature that the weights do not reach
            by_weights, *by_theta = torch.autograd.grad(
                product, [own, *theta], allow_unused=True, materialize_grads=True
            )
        total = total - rate * by_weights.to(total.dtype)
        adjoint = [a - rate * h for a, h in zip(adjoint, by_theta, strict=True)]
    return total
