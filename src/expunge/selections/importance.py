"""How much each weight matters to a set of examples: second moments of gradients, per example or per batch.

The square of a batch's mean gradient shrinks with the batch, so two sets measured with different batch sizes cannot be
compared; the mean of squared per-example gradients does not depend on any batch. For classifiers and regressors it is
computed for many examples at once: layer by layer where there is a rule (``layer_gradients.py``), by ``torch.func``
elsewhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from expunge.selections.layer_gradients import (
    Layers,
    NotApart,
    Seen,
    backward,
    calls_in,
    layers_of,
    recording,
    squares_of,
)
from expunge.tasks.base import Task
from expunge.tasks.examples import LabelledExamples
from expunge.tasks.predictor import Predictor

Kind = Literal["example", "batch", "fisher"]
# Maps (B, C) outputs and (B, ...) targets to (B,) losses.
Loss = Callable[[Tensor, Tensor], Tensor]
# A loss, the targets that it takes, and the weight of every example.
Weighed = tuple[Loss, Tensor, Tensor]
# What is to be squared of a batch of examples; asks for its (B, C) outputs only where they matter.
LossesOf = Callable[[LabelledExamples, Callable[[], Tensor]], list[Weighed]]
# As many examples are taken at once as hold about this many numbers, and never more than MOST: a larger batch only
# leaves the processor's cache.
HELD = 1 << 24
MOST = 256


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
    passes: int | None = None,
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
              place of the labels. For language models one answer per position is drawn (by ``seed`` and example id)
              instead of summed over; for D numbers the distribution is a Gaussian of variance D/2, whose loss is the
              mean squared error.
        batch_size: of "batch".
        seed: of the draws, which also depend on the example id, and on nothing else.
        passes: of "fisher", the most backward passes per example. With more classes than this, the sum over them is
            estimated without bias along as many random directions: with ``z_c`` = +-1 and ``v = sqrt(p) z - p
            sum_c sqrt(p_c) z_c``, ``E v v^T = diag(p) - p p^T``, the information of the outputs. None: always the sum.

    Returns:
        Name -> float32 tensor of the parameter's shape; zero where the loss does not depend on it.
    """
    with differentiable(task, parameters):
        if kind == "batch":
            step = batch_size
            batches = [list(range(k, min(k + step, len(encoded)))) for k in range(0, len(encoded), step)]
            return _averaged(parameters, (_gradient(task, encoded.take(b), parameters) for b in batches), len(batches))
        if isinstance(task, Predictor):
            return _of_predictor(task, encoded, parameters, partial(_losses, task, kind, seed, passes))
        draws = (_luck(seed, identity) if kind == "fisher" else None for identity in encoded.ids)
        singles = (_gradient(task, encoded.take([i]), parameters, draw) for i, draw in enumerate(draws))
        return _averaged(parameters, singles, len(encoded))


def _luck(seed: int, identity: str) -> torch.Generator:
    """Return a generator that depends on seed and example id alone, and not on which examples came before."""
    digest = hashlib.blake2b(f"{seed}\x1f{identity}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") % 2**63)


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


def chunks(task: Predictor, encoded: LabelledExamples, numbers: int) -> Iterator[LabelledExamples]:
    """Yield examples in their order, as many at a time as hold about ``HELD`` numbers if each holds ``numbers``.

    Texts are padded, so that those of a chunk are of like length if the examples are.
    """
    size = max(1, min(MOST, HELD // max(1, numbers)))
    for start in range(0, len(encoded), size):
        yield encoded.take(range(start, min(start + size, len(encoded))))


def layers_for(task: Predictor, encoded: LabelledExamples, parameters: Mapping[str, Tensor]) -> Layers:
    """Find the layers of a model whose gradients can be told apart for these examples.

    Args:
        task: the model, in evaluation mode, see ``differentiable``.
        encoded: the examples; a single one leaves all to other means.
        parameters: with respect to what, by name.
    """
    if len(encoded) < 2:
        return Layers({}, [], list(parameters), sum(p.numel() for p in parameters.values()))
    batch = task.batch(encoded.take([0, 1]))
    return layers_of(task.model, parameters, lambda size: task.predict({k: v[:size] for k, v in batch.items()}), most=2)


@contextmanager
def recorded_forward(
    task: Predictor, part: LabelledExamples, layers: Layers
) -> Iterator[tuple[Tensor, Tensor, Mapping[str, Sequence[Seen | None]]]]:
    """Yield (B, C) outputs, targets and the recorded calls of one forward pass.

    Args:
        task: the model.
        part: B examples.
        layers: from ``layers_for``.
    """
    with recording(task.model, list(layers.owned), layers.same, len(part)) as seen, torch.enable_grad():
        outputs = task.predict(task.batch(part))
    _count(task, part)
    yield outputs, part.targets.to(task.device), seen


def _count(task: Predictor, part: LabelledExamples) -> None:
    task.cost.forwards += 1
    task.cost.backwards += 1
    task.cost.sequences += len(part)


def _of_predictor(
    task: Predictor, encoded: LabelledExamples, parameters: Mapping[str, Tensor], losses_of: LossesOf
) -> dict[str, Tensor]:
    layers = layers_for(task, encoded, parameters)
    ordered = encoded
    if not isinstance(encoded.inputs, Tensor):
        ordered = encoded.take(sorted(range(len(encoded)), key=encoded.length))
        width = encoded.length(0)
        longest = max(encoded.length(i) for i in range(len(encoded)))
        layers = replace(layers, numbers=layers.numbers * max(1, longest // max(1, width)))
    total = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in parameters.items()}
    try:
        if layers.owned:
            _add_by_layers(task, ordered, layers, losses_of, total)
    except NotApart:
        total = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in parameters.items()}
        layers = replace(layers, owned={}, rest=list(parameters))
    rest = {name: parameters[name] for name in layers.rest}
    if rest:
        _add_mapped(task, ordered, rest, losses_of, total)
    return {name: value / len(encoded) for name, value in total.items()}


def _add_by_layers(
    task: Predictor, encoded: LabelledExamples, layers: Layers, losses_of: LossesOf, total: dict[str, Tensor]
) -> None:
    for part in chunks(task, encoded, layers.numbers):
        with recorded_forward(task, part, layers) as (outputs, _, seen):
            wanted = losses_of(part, outputs.detach)
            calls, gradients = calls_in(seen, layers, len(part)), []
            for number, (loss, aims, _) in enumerate(wanted, 1):
                with torch.enable_grad():
                    losses = loss(outputs, aims)
                gradients.append(backward(calls, losses, keep=number < len(wanted)))
            shares = [share for _, _, share in wanted]
            for k, (names, call) in enumerate(zip(layers.owned.values(), calls, strict=True)):
                squares = squares_of(call, [found[k] for found in gradients], shares)
                for own, full in names.items():
                    total[full] += squares[own]


def _add_mapped(
    task: Predictor,
    encoded: LabelledExamples,
    rest: Mapping[str, Tensor],
    losses_of: LossesOf,
    total: dict[str, Tensor],
) -> None:
    """Add what no rule covers: by ``torch.func``, or one example at a time where it cannot map the model."""
    weights = sum(p.numel() for p in rest.values())
    mapped = fixed = isinstance(encoded.inputs, Tensor)
    for part in chunks(task, encoded, weights if fixed else HELD):
        for loss, aims, share in losses_of(part, partial(_outputs, task, part)):
            if mapped:
                try:
                    found = _mapped(task, part, aims, rest, loss)
                except RuntimeError:  # code that cannot be mapped, such as that of recurrent layers of several kinds
                    mapped = False
            if mapped:
                for name, gradient in found.items():
                    square = gradient.float().square()
                    total[name] += torch.einsum("b,b...->...", share.to(square), square)
                continue
            for i in range(len(part)):
                for name, gradient in _single(task, part.take([i]), aims[i : i + 1], rest, loss).items():
                    total[name] += share[i] * gradient.float().square()


def _outputs(task: Predictor, part: LabelledExamples) -> Tensor:
    with torch.no_grad():
        return task.predict(task.batch(part))


def _mapped(
    task: Predictor, part: LabelledExamples, targets: Tensor, parameters: Mapping[str, Tensor], loss: Loss
) -> dict[str, Tensor]:
    """(B, *shape) gradients by ``torch.func``."""
    model = task.model
    fixed = {name: p.detach() for name, p in model.named_parameters() if name not in parameters}
    fixed |= {name: buffer.detach() for name, buffer in model.named_buffers()}
    moving = {name: p.detach() for name, p in parameters.items()}

    def of_one(weights: dict[str, Tensor], batch: dict[str, Tensor], target: Tensor) -> Tensor:
        def forward(*args: Any, **kwargs: Any) -> Any:
            return torch.func.functional_call(model, {**fixed, **weights}, args, kwargs)

        single = {name: value.unsqueeze(0) for name, value in batch.items()}
        return loss(task.predict(single, forward), target.unsqueeze(0)).sum()

    mapped = torch.func.vmap(torch.func.grad(of_one), in_dims=(None, 0, 0))
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels cannot be mapped and would be called once per example
        found: dict[str, Tensor] = mapped(moving, task.batch(part), targets)
    _count(task, part)
    return found


def _single(
    task: Predictor, part: LabelledExamples, targets: Tensor, parameters: Mapping[str, Tensor], loss: Loss
) -> dict[str, Tensor]:
    """Gradients of one example, of the parameters' shapes."""
    with torch.enable_grad():
        losses = loss(task.predict(task.batch(part)), targets)
    found = torch.autograd.grad(losses.sum(), list(parameters.values()), allow_unused=True)
    _count(task, part)
    return {
        name: torch.zeros_like(p) if g is None else g for (name, p), g in zip(parameters.items(), found, strict=True)
    }


def _losses(
    task: Predictor,
    kind: Kind,
    seed: int,
    passes: int | None,
    part: LabelledExamples,
    outputs: Callable[[], Tensor],
) -> list[Weighed]:
    """Return the losses whose squared gradients are added up."""
    targets, ones = part.targets.to(task.device), torch.ones(len(part), device=task.device)
    if kind == "example":
        return [(task.losses, targets, ones)]
    if task.outcomes is None:
        # The mean squared error of D numbers is the negative log-likelihood of Gaussians of variance D / 2.
        scale = (2 / task.outcome.width) ** 0.5
        return [(partial(_output, k, scale), targets, ones) for k in range(task.outcome.width)]
    probabilities = torch.softmax(outputs(), -1)
    if passes is None or task.outcomes <= passes:
        return [(partial(_surprise, c), targets, probabilities[:, c]) for c in range(task.outcomes)]
    size = (passes, task.outcomes)
    signs = torch.stack([torch.randint(0, 2, size, generator=_luck(seed, identity)) for identity in part.ids], 1)
    return [(_along, _directions(probabilities, signs[k]), ones / passes) for k in range(passes)]


def _output(k: int, scale: float, outputs: Tensor, _: Tensor) -> Tensor:
    return outputs[:, k] * scale


def _surprise(label: int, outputs: Tensor, _: Tensor) -> Tensor:
    return -torch.log_softmax(outputs, -1)[:, label]


def _directions(probabilities: Tensor, signs: Tensor) -> Tensor:
    """Return (B, C) directions v with E v v^T = diag(p) - p p^T, of (B, C) probabilities and fair coins 0 or 1."""
    spread = probabilities.sqrt() * (signs.to(probabilities) * 2 - 1)
    return spread - probabilities * spread.sum(-1, keepdim=True)


def _along(outputs: Tensor, directions: Tensor) -> Tensor:
    return (outputs * directions).sum(-1)
