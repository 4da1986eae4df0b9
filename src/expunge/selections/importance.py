"""How much each weight matters to a set of examples: second moments of gradients, per example or per batch.

The square of a batch's mean gradient shrinks with the batch, so two sets measured with different batch sizes cannot be
compared; the mean of squared per-example gradients does not depend on any batch. It is computed for a whole batch at
once (``torch.func``) where the model is a plain function of fixed-size inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from expunge.tasks.base import Task
from expunge.tasks.encoding import length_batches
from expunge.tasks.examples import LabelledExamples
from expunge.tasks.predictor import Predictor

Kind = Literal["example", "batch", "fisher"]
# Per-example gradients of as many examples are held at once as have about this many numbers.
HELD = 1 << 26


@contextmanager
def differentiable(task: Task, parameters: Mapping[str, Tensor]) -> Iterator[None]:
    """Put a model into evaluation mode with gradients for these parameters, and back as it was."""
    training, flags = task.model.training, {name: p.requires_grad for name, p in parameters.items()}
    task.model.eval()
    for p in parameters.values():
        p.requires_grad_(True)
    try:
        yield
    finally:
        task.model.train(training)
        for name, p in parameters.items():
            p.requires_grad_(flags[name])


def squared_gradients(
    task: Task,
    encoded: Any,
    parameters: Mapping[str, Tensor],
    *,
    kind: Kind = "example",
    batch_size: int = 1,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Return the diagonal second moment of gradients over examples, in evaluation mode.

    Args:
        task: the model; its weights, mode and gradients are left as they are.
        encoded: the examples, N of them.
        parameters: with respect to what, by name.
        kind:

            - "example": ``1/N sum_x (d l(x) / d theta)^2``, ``l`` the loss of one example, averaged over its tokens.
            - "batch": ``1/#batches sum_B (d mean_B l / d theta)^2``, batches of ``batch_size`` in the given order.
            - "fisher": ``1/N sum_x sum_c p(c|x) (d -log p(c|x) / d theta)^2``, the model's own distribution in the
              place of the labels. For language models one answer per position is drawn (by ``seed``) instead of summed
              over; for D numbers the distribution is a Gaussian of variance D/2, whose loss is the mean squared error.
        batch_size: of "batch".
        seed: of the draw for language models.

    Returns:
        Name -> float32 tensor of the parameter's shape; zero where the loss does not depend on it.
    """
    with differentiable(task, parameters):
        if kind == "batch":
            step = batch_size
            batches = [list(range(k, min(k + step, len(encoded)))) for k in range(0, len(encoded), step)]
            return _averaged(parameters, (_gradient(task, encoded.take(b), parameters) for b in batches), len(batches))
        if isinstance(task, Predictor) and isinstance(encoded.inputs, Tensor):
            return _mapped(task, encoded, parameters, kind)
        generator = torch.Generator().manual_seed(seed)
        draw = generator if kind == "fisher" else None
        singles = (_gradient(task, encoded.take([i]), parameters, draw) for i in range(len(encoded)))
        return _averaged(parameters, singles, len(encoded))


def _averaged(
    parameters: Mapping[str, Tensor], gradients: Iterator[Sequence[Tensor | None]], count: int
) -> dict[str, Tensor]:
    total = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in parameters.items()}
    for found in gradients:
        for name, gradient in zip(parameters, found, strict=True):
            if gradient is not None:
                total[name] += gradient.float().square() / count
    return total


def _gradient(
    task: Task, part: Any, parameters: Mapping[str, Tensor], draw: torch.Generator | None = None
) -> Sequence[Tensor | None]:
    """Gradient of the mean loss of a batch; of labels drawn from the model's own distribution if ``draw`` is given."""
    with torch.enable_grad():
        found = task.statistics(part)
        losses = found.nll
        if draw is not None:
            probabilities = torch.softmax(found.logits.detach(), -1).cpu()
            labels = torch.multinomial(probabilities, 1, generator=draw)[:, 0].to(found.logits.device)
            losses = F.cross_entropy(found.logits, labels, reduction="none").masked_fill(~found.labelled, 0.0)
        loss = losses.sum() / sum(part.labelled(i) for i in range(len(part)))
    return torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)


def per_example_gradients(
    task: Predictor, part: LabelledExamples, parameters: Mapping[str, Tensor], loss: Callable[[Tensor, Tensor], Tensor]
) -> dict[str, Tensor]:
    """Return the gradient of every example of a batch in one vectorised pass.

    Args:
        task: a model with one prediction per example, in evaluation mode.
        part: B examples of one size.
        parameters: with respect to what, by name.
        loss: maps (1, C) outputs and the (1, ...) target of one example to its loss, a scalar.

    Returns:
        Name -> (B, *shape).
    """
    model = task.model
    fixed = {name: p.detach() for name, p in model.named_parameters() if name not in parameters}
    fixed |= {name: buffer.detach() for name, buffer in model.named_buffers()}
    moving = {name: p.detach() for name, p in parameters.items()}

    def of_one(weights: dict[str, Tensor], batch: dict[str, Tensor], target: Tensor) -> Tensor:
        def forward(*args: Any, **kwargs: Any) -> Any:
            return torch.func.functional_call(model, {**fixed, **weights}, args, kwargs)

        single = {name: value.unsqueeze(0) for name, value in batch.items()}
        return loss(task.predict(single, forward), target.unsqueeze(0))

    mapped = torch.func.vmap(torch.func.grad(of_one), in_dims=(None, 0, 0))
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels cannot be mapped and would be called once per example
        found: dict[str, Tensor] = mapped(moving, task.batch(part), part.targets.to(task.device))
    task.cost.forwards += 1
    task.cost.backwards += 1
    task.cost.sequences += len(part)
    return found


def _mapped(
    task: Predictor, encoded: LabelledExamples, parameters: Mapping[str, Tensor], kind: Kind
) -> dict[str, Tensor]:
    total = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in parameters.items()}
    weights = sum(p.numel() for p in parameters.values())
    for batch in length_batches([1] * len(encoded), max(1, HELD // max(1, weights))):
        part = encoded.take(sorted(batch))
        for loss, share in _losses(task, part, kind):
            for name, gradient in per_example_gradients(task, part, parameters, loss).items():
                square = gradient.float().square()
                total[name] += torch.einsum("b,b...->...", share.to(square), square) / len(encoded)
    return total


def _losses(
    task: Predictor, part: LabelledExamples, kind: Kind
) -> Iterator[tuple[Callable[[Tensor, Tensor], Tensor], Tensor]]:
    """Yield the losses whose squared gradients are added up, each with the weight of every example."""
    ones = torch.ones(len(part), device=task.device)
    if kind == "example":
        yield lambda outputs, target: task.losses(outputs, target).sum(), ones
        return
    if task.outcomes is None:
        # The mean squared error of D numbers is the negative log-likelihood of Gaussians of variance D / 2.
        scale = (2 / task.outcome.width) ** 0.5
        for k in range(task.outcome.width):
            yield partial(_output, k, scale), ones
        return
    with torch.no_grad():
        probabilities = torch.softmax(task.predict(task.batch(part)), -1)
    for c in range(task.outcomes):
        yield partial(_surprise, torch.full((1,), c, device=task.device)), probabilities[:, c]


def _output(k: int, scale: float, outputs: Tensor, _: Tensor) -> Tensor:
    return outputs[:, k].sum() * scale


def _surprise(label: Tensor, outputs: Tensor, _: Tensor) -> Tensor:
    return F.cross_entropy(outputs, label, reduction="sum")
