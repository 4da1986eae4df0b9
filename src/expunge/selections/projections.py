"""Products of the gradient of every example with directions, without forming a gradient of a single example."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from expunge.selections.importance import chunks, layers_for, recorded_forward
from expunge.selections.layer_gradients import Layers, NotApart, backward, calls_in, projections_of
from expunge.tasks.base import Task
from expunge.tasks.encoding import length_batches
from expunge.tasks.examples import LabelledExamples
from expunge.tasks.predictor import Predictor

Direction = Mapping[str, Tensor]


def projected_gradients(
    task: Task, encoded: Any, parameters: Mapping[str, Tensor], directions: Sequence[Direction]
) -> Tensor:
    """Return the products of the gradient of every example's mean loss with directions.

    Args:
        task: the model, in evaluation mode with gradients for the parameters, see ``importance.differentiable``.
        encoded: N examples.
        parameters: with respect to what, by name.
        directions: D of them, each name -> tensor of the parameter's shape.

    Returns:
        (D, N), in the order of the examples.
    """
    found = torch.zeros(len(directions), len(encoded), device=task.device)
    rest = dict(parameters)
    if isinstance(task, Predictor):
        layers = layers_for(task, encoded, parameters)
        try:
            _by_layers(task, encoded, layers, directions, found)
        except NotApart:
            found.zero_()
            layers = replace(layers, owned={}, rest=list(parameters))
        rest = {name: parameters[name] for name in layers.rest}
    if rest:
        _by_second_derivative(task, encoded, rest, directions, found)
    return found


def _by_layers(
    task: Predictor, encoded: LabelledExamples, layers: Layers, directions: Sequence[Direction], found: Tensor
) -> None:
    start = 0
    for part in chunks(task, encoded, layers.numbers) if layers.owned else ():
        with recorded_forward(task, part, layers) as (outputs, targets, seen):
            calls = calls_in(seen, layers, len(part))
            with torch.enable_grad():
                losses = task.losses(outputs, targets)
            gradients = backward(calls, losses, keep=False)
        stop = start + len(part)
        for names, call, gradient in zip(layers.owned.values(), calls, gradients, strict=True):
            for number, direction in enumerate(directions):
                along = {own: direction[full] for own, full in names.items()}
                found[number, start:stop] += projections_of(call, gradient, along)
        start = stop


def _by_second_derivative(
    task: Task, encoded: Any, parameters: Mapping[str, Tensor], directions: Sequence[Direction], found: Tensor
) -> None:
    """The derivative of ``sum_i w_i g_i`` in a direction with respect to w holds the products of all g_i with it."""
    names = list(parameters)
    lengths = [encoded.length(i) for i in range(len(encoded))]
    for batch in length_batches(lengths, max(1, task.tokens_per_forward // 8)):
        # The fused attention kernels have no second derivative.
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            losses = task.statistics(encoded.take(batch)).mean_nll
            weights = torch.zeros_like(losses, requires_grad=True)
            pulled = torch.autograd.grad(
                losses, list(parameters.values()), weights, create_graph=True, allow_unused=True
            )
            for number, direction in enumerate(directions):
                pairs = [(g, direction[name]) for g, name in zip(pulled, names, strict=True) if g is not None]
                if pairs:
                    (each,) = torch.autograd.grad(
                        [g for g, _ in pairs], weights, [u for _, u in pairs], retain_graph=True
                    )
                    found[number, batch] += each
