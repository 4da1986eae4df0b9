"""Training on inputs that an adversary has moved as far as it may: projected gradient descent.

Source: Madry et al. 2018, Towards Deep Learning Models Resistant to Adversarial Attacks (arXiv:1706.06083).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from expunge.tasks.examples import LabelledExamples
from expunge.tasks.predictor import Predictor
from expunge.training.loop import train
from expunge.training.objective import Objective, Term, nll
from expunge.training.settings import Strict, TrainSettings

Norm = Literal["l2", "linf"]


class Adversary(Strict):
    """How far inputs may be moved, on the scale of the stored inputs: pixels from 0 to 1."""

    norm: Norm = Field("l2", description="norm that bounds the change of one example")
    eps: PositiveFloat = Field(0.5, description="largest norm of the change")
    steps: PositiveInt = Field(5, description="gradient steps of the attack")
    step: PositiveFloat = Field(0.5, description="length of a step, as a share of eps")


def projected(delta: Tensor, norm: Norm, eps: float) -> Tensor:
    """Return (B, ...) changes brought back to a norm of at most ``eps``, each by itself."""
    if norm == "linf":
        return delta.clamp(-eps, eps)
    lengths = delta.flatten(1).norm(dim=1).clamp_min(1e-15).view(-1, *[1] * (delta.dim() - 1))
    return delta * (eps / lengths).clamp(max=1)


def attacked(
    gradient: Callable[[Tensor], Tensor], inputs: Tensor, adversary: Adversary, low: Tensor, high: Tensor
) -> Tensor:
    """Return inputs moved along the gradient of their losses.

    Args:
        gradient: maps (B, ...) inputs to the gradient of each one's loss by it.
        inputs: (B, ...).
        adversary: how far, in how many steps; the first starts at the inputs themselves.
        low, high: bounds of inputs, that broadcast.

    Returns:
        (B, ...), within the bounds and within ``eps`` of the inputs.
    """
    moved = inputs
    length = adversary.step * adversary.eps
    for _ in range(adversary.steps):
        slope = gradient(moved)
        if adversary.norm == "l2":
            slope = slope / (slope.flatten(1).norm(dim=1).view(-1, *[1] * (slope.dim() - 1)) + 1e-15)
        else:
            slope = slope.sign()
        delta = projected(moved + length * slope - inputs, adversary.norm, adversary.eps)
        moved = torch.minimum(torch.maximum(inputs + delta, low), high)
    return moved


def on_the_scale(encoded: LabelledExamples) -> LabelledExamples:
    """Return the same examples with fractions where whole-number pixels were, which the model reads alike."""
    assert isinstance(encoded.inputs, Tensor)
    whole = encoded.inputs.dtype == torch.uint8
    return replace(encoded, inputs=encoded.inputs.float() / 255 if whole else encoded.inputs.float())


class _Hardened(Predictor):
    """A model whose training sees every batch as the adversary moves it, against the weights of that moment."""

    def __init__(self, task: Predictor, adversary: Adversary, low: Tensor, high: Tensor):
        super().__init__(task.model, task.inputs, task.outcome, factory=task.factory, source=task.source)
        self.adversary, self.low, self.high = adversary, low, high

    @property
    def varies(self) -> bool:
        return True

    def varied(self, encoded: LabelledExamples, seed: int) -> LabelledExamples:
        if self.inputs.varies:
            encoded = super().varied(encoded, seed)
        training = self.model.training
        self.model.eval()
        try:
            moved = attacked(lambda x: self._slope(encoded, x), _tensor(encoded), self.adversary, self.low, self.high)
        finally:
            self.model.train(training)
        return replace(encoded, inputs=moved)

    def _slope(self, encoded: LabelledExamples, inputs: Tensor) -> Tensor:
        at = inputs.detach().requires_grad_(True)
        with torch.enable_grad():
            part = replace(encoded, inputs=at)
            loss = self.losses(self.predict(self.batch(part)), encoded.targets.to(self.device)).sum()
            (gradient,) = torch.autograd.grad(loss, at)
        self.cost.forwards += 1
        self.cost.backwards += 1
        self.cost.sequences += len(encoded)
        return gradient


def _tensor(encoded: LabelledExamples) -> Any:
    assert isinstance(encoded.inputs, Tensor)
    return encoded.inputs


def trained_anew(
    task: Predictor, encoded: LabelledExamples, settings: TrainSettings, adversary: Adversary | None = None
) -> Predictor:
    """Train a model of the same architecture from fresh weights on the labels of examples.

    Args:
        task: gives the architecture, from its factory or its configuration; left as it is.
        encoded: the examples, of one size; pixels as fractions if there is an adversary (``on_the_scale``).
        settings: of the loop; its seed also makes the fresh weights.
        adversary: moves what training sees, within the range of the examples' own values; None to train plainly.

    Raises:
        BadInput: a plain module without a factory.
    """
    model = task.fresh(settings.seed)
    learner = model
    if adversary is not None:
        values = _tensor(encoded)
        learner = _Hardened(model, adversary, values.min(), values.max())
    objective = Objective((Term("nll", ("retain",), nll, "token_mean"),), anchor="retain")
    train(learner, objective, {"retain": encoded}, settings)
    model.cost = learner.cost
    model.model.eval()
    return model
