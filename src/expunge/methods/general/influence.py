"""Influence unlearning: one Newton step towards the model that never saw the forget set."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from expunge.methods.base import EditingMethod, MethodConfig, Run
from expunge.requests.request import DeletionRequest
from expunge.selections.importance import differentiable
from expunge.selections.projections import projected_gradients
from expunge.tasks.base import Task
from expunge.tasks.encoding import length_batches
from expunge.tasks.kinds import KINDS
from expunge.tasks.statistics import RegressionStatistics, Statistics


class InfluenceConfig(MethodConfig):
    """Hyperparameters of influence unlearning."""

    alpha: PositiveFloat = Field(1.0, description="length of the step; the reference tunes it between 1 and 20")
    damping: PositiveFloat = Field(1e-2, description="added to the curvature, so that flat directions stay")
    iterations: PositiveInt = Field(20, description="conjugate gradient steps at most")
    tolerance: PositiveFloat = Field(1e-3, description="relative residual at which they stop")
    parity: bool = Field(
        False, description="reproduce the reference: its one-vector recursion over single examples (WoodFisher)"
    )
    parity_examples: PositiveInt = Field(1000, description="constant of the recursion, which also bounds its length")


def conjugate_gradient(
    product: Callable[[Tensor], Tensor], target: Tensor, iterations: int, tolerance: float
) -> tuple[Tensor, float, int]:
    """Solve ``A x = b`` for a symmetric positive definite A that is known by its products.

    Args:
        product: maps (P,) to A times it.
        target: b, (P,).
        iterations: at most.
        tolerance: stop when the residual's norm is below this times that of b.

    Returns:
        x, the relative residual reached, and the products taken.
    """
    solution, residual = torch.zeros_like(target), target.clone()
    direction, squared = residual.clone(), residual.dot(residual)
    goal, taken = tolerance**2 * squared, 0
    while taken < iterations and squared > goal:
        image = product(direction)
        step = squared / direction.dot(image)
        solution += step * direction
        residual -= step * image
        new = residual.dot(residual)
        direction = residual + (new / squared) * direction
        squared, taken = new, taken + 1
    norm = target.norm()
    return solution, float(squared.sqrt() / norm) if norm > 0 else 0.0, taken


def woodfisher_reference(
    vector: Tensor, gradients: Iterator[Tensor] | Sequence[Tensor], constant: int = 1000
) -> Tensor:
    """Return the reference's approximation of an inverse Fisher times a vector.

    With gradients g_1, g_2, ... of single examples and o = g_1, k = vector, for every later one: t = o . g_i,
    k -= (k . g_i) / (M + t) o, o -= t / (M + t) o. At most M + 1 later ones are read. It is not the rank-one recursion
    that it resembles: one decaying vector stands for the inverse, so the first example decides and order matters.

    Args:
        vector: (P,).
        gradients: (P,) each, in order.
        constant: M.
    """
    k, o = vector.clone(), None
    for index, g in enumerate(gradients):
        if o is None:
            o = g.clone()
            continue
        if index > constant + 1:
            break
        t = o.dot(g)
        k = k - k.dot(g) / (constant + t) * o
        o = o - t / (constant + t) * o
    return k


def woodfisher_weight(own: Sequence[float], shared: Sequence[float], constant: int = 1000) -> float:
    """Return c with which ``woodfisher_reference`` ends at ``vector - c g_1``.

    Its o only ever shrinks, so it stays a multiple s of g_1, and k moves along it: products of the gradients with g_1
    and with the vector are all that it reads.

    Args:
        own: ``vector . g_i``, in order; the first is not read.
        shared: ``g_1 . g_i``.
        constant: M.
    """
    c, s = 0.0, 1.0
    for b, a in zip(own[1 : constant + 2], shared[1 : constant + 2], strict=True):
        t = s * a
        c += (b - c * a) / (constant + t) * s
        s -= t / (constant + t) * s
    return c


def curvature(statistics: Statistics, change: Tensor) -> Tensor:
    """Multiply a change of the outputs by the second derivative of each row's loss with respect to its outputs.

    Args:
        statistics: rows; those without a label have no loss.
        change: (R, C).

    Returns:
        (R, C): ``p * u - p (p . u)`` for cross-entropy, ``2 u / D`` for the mean squared error of D numbers.
    """
    if isinstance(statistics, RegressionStatistics):
        return 2 * change / change.shape[-1]
    p = torch.softmax(statistics.logits.detach(), -1)
    return (p * change - p * (p * change).sum(-1, keepdim=True)) * statistics.labelled[:, None]


class Influence(EditingMethod):
    """theta' = theta + alpha (G + damping)^-1 v, v = g_f / N - g_r N_f / (N N_r).

    ``g_f`` and ``g_r`` are the summed gradients of the losses of forget and retain set, N = N_f + N_r; at a minimum of
    the joint loss, v is what removing the forget set leaves of the gradient. G is the Gauss-Newton matrix of the mean
    retain loss, never formed: conjugate gradients need its products alone.

    The reference approximates the inverse by a recursion that depends on the order of the examples (``parity=True``,
    see ``woodfisher_reference``).

    Source: Izzo et al. 2021 and Koh and Liang 2017; the baseline IU of Jia et al. 2023 (arXiv 2304.04934).
    """

    id = "influence"
    title = "one Newton step that takes the forget set's influence out; no training"
    tasks: ClassVar[tuple[str, ...]] = KINDS
    needs: ClassVar[tuple[str, ...]] = ("retain",)
    paper = "Izzo et al. 2021, Approximate Data Deletion from Machine Learning Models, arXiv:2002.10077"
    Config: ClassVar[type[MethodConfig]] = InfluenceConfig

    def edit(self, model: Task, request: DeletionRequest, run: Run) -> dict[str, Any]:
        """Solve for the step and take it."""
        config, parameters = self.config, dict(model.named_parameters())
        found: dict[str, Any]
        with differentiable(model, parameters):
            forget, retain = model.encode(request.forget), model.encode(request.retain)
            total = len(forget) + len(retain)
            kept = _summed(model, retain, parameters) * len(forget) / (total * len(retain))
            vector = _summed(model, forget, parameters) / total - kept
            if config.parity:
                read = retain.take(range(min(len(retain), config.parity_examples + 2)))
                first = _summed(model, read.take([0]), parameters)
                directions = [dict(zip(parameters, _split(u, parameters), strict=True)) for u in (first, vector)]
                shared, own = projected_gradients(model, read, parameters, directions).tolist()
                step = vector - woodfisher_weight(own, shared, config.parity_examples) * first
                found = {"examples": len(read)}
            else:
                step, residual, taken = conjugate_gradient(
                    lambda u: _product(model, retain, parameters, u) + config.damping * u,
                    vector,
                    config.iterations,
                    config.tolerance,
                )
                found = {"residual": residual, "products": taken}
            with torch.no_grad():
                for weight, part in zip(parameters.values(), _split(step, parameters), strict=True):
                    weight += config.alpha * part.to(weight.dtype)
        return found


def _flat(found: Sequence[Tensor | None], parameters: Mapping[str, Tensor]) -> Tensor:
    parts = zip(found, parameters.values(), strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).detach().float().reshape(-1) for g, p in parts])


def _split(flat: Tensor, parameters: Mapping[str, Tensor]) -> list[Tensor]:
    sizes = [p.numel() for p in parameters.values()]
    return [part.view(p.shape) for part, p in zip(flat.split(sizes), parameters.values(), strict=True)]


def _batches(model: Task, encoded: Any) -> list[list[int]]:
    lengths = [encoded.length(i) for i in range(len(encoded))]
    return length_batches(lengths, max(1, model.tokens_per_forward // 8))


def _loss(found: Statistics) -> Tensor:
    """Sum over examples of the mean loss of their rows."""
    return found.mean_nll.sum()


def _summed(model: Task, encoded: Any, parameters: Mapping[str, Tensor]) -> Tensor:
    """(P,) gradient of the summed losses of all examples."""
    total = torch.zeros(sum(p.numel() for p in parameters.values()), device=model.device)
    for batch in _batches(model, encoded):
        with torch.enable_grad():
            loss = _loss(model.statistics(encoded.take(batch)))
        total += _flat(torch.autograd.grad(loss, list(parameters.values()), allow_unused=True), parameters)
    return total


def _product(model: Task, encoded: Any, parameters: Mapping[str, Tensor], direction: Tensor) -> Tensor:
    """(P,) Gauss-Newton matrix of the mean loss times a direction: J^T H J u, one batch at a time.

    J u is the derivative of J^T w with respect to w in the direction u, so two backward passes give it.
    """
    along, total = _split(direction, parameters), torch.zeros_like(direction)
    weights = list(parameters.values())
    for batch in _batches(model, encoded):
        # The fused attention kernels have no second derivative.
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            found = model.statistics(encoded.take(batch))
            dummy = torch.zeros_like(found.logits, requires_grad=True)
            pulled = torch.autograd.grad(found.logits, weights, dummy, create_graph=True, allow_unused=True)
            pairs = [(g, u) for g, u in zip(pulled, along, strict=True) if g is not None]
            (change,) = torch.autograd.grad([g for g, _ in pairs], dummy, [u for _, u in pairs], retain_graph=True)
            per_row = curvature(found, change) / found.counts[found.example][:, None]
            back = torch.autograd.grad(found.logits, weights, per_row, allow_unused=True)
        total += _flat(back, parameters) / len(encoded)
    return total
