"""Boundary shrink: send each example to forget to the class that lies nearest across the decision boundary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat
from torch import Tensor

from expunge.methods.base import MethodConfig, ObjectiveMethod, Run
from expunge.requests.request import DeletionRequest
from expunge.tasks.base import Task
from expunge.tasks.encoding import length_batches
from expunge.tasks.examples import EncodedExamples, LabelledExamples
from expunge.tasks.image_inputs import ImageInputs
from expunge.tasks.predictor import Predictor
from expunge.training.objective import Objective, Stream, Term, nll


class BoundaryShrinkConfig(MethodConfig):
    """Hyperparameters of boundary shrink."""

    step: PositiveFloat = Field(0.1, description="length of the adversarial step, of pixels from 0 to 1")
    parity: bool = Field(
        False,
        description="reproduce the reference: round perturbed images to 256 levels, and take the prediction behind the "
        "step even if it is the true class",
    )


def neighbour_class(logits: Tensor, true: Tensor, parity: bool = False) -> Tensor:
    """Return (B,) the most probable class of perturbed examples, the true one left out.

    Args:
        logits: (B, C) of the perturbed examples.
        true: (B,) their classes.
        parity: do not leave it out: where the step does not cross the boundary, the "neighbour" is the class itself.
    """
    if parity:
        return logits.argmax(-1)
    return logits.scatter(1, true[:, None], -torch.inf).argmax(-1)


def rounded(pixels: Tensor, mean: float | Tensor = 0.0, std: float | Tensor = 1.0) -> Tensor:
    """Return images whose pixels are one of 256 levels from 0 to 1, as the reference rounds perturbed ones.

    Args:
        pixels: (B, ...), normalised by ``mean`` and ``std``.
        mean, std: of the normalisation, which broadcast.
    """
    return (torch.round((pixels * std + mean) * 255) / 255 - mean) / std


def adversarial_step(pixels: Tensor, gradient: Tensor, step: float | Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return ``clip(x + step sign(gradient))``.

    Args:
        pixels, gradient: (B, ...).
        step: how far, a number or a tensor that broadcasts.
        low, high: bounds that broadcast.
    """
    return torch.minimum(torch.maximum(pixels + step * gradient.sign(), low), high)


class BoundaryShrink(ObjectiveMethod):
    """L = CE(f(x), y'), y' = argmax_{c != y} f_0(clip(x + step sign(d CE(f_0(x), y) / dx))), on the forget set alone.

    f_0 is the model before unlearning, in evaluation mode; training sees the clean x. The step is one of the sign of
    the gradient, in pixels from 0 to 1 whatever the model's normalisation. The reference rounds the perturbed image to
    256 levels and keeps y' where it is the true class (``parity=True`` does both): a step that does not cross the
    boundary then trains towards what is to be forgotten.

    Source: Chen et al. 2023, Boundary Unlearning (arXiv 2303.11570), section 4.2.
    """

    id = "boundary_shrink"
    title = "send each image to forget to the nearest other class"
    tasks: ClassVar[tuple[str, ...]] = ("image_classifier",)
    paper = "Chen et al. 2023, Boundary Unlearning, arXiv:2303.11570"
    train_defaults: ClassVar[Mapping[str, Any]] = {"learning_rate": 1e-5, "weight_decay": 0.0}
    Config: ClassVar[type[MethodConfig]] = BoundaryShrinkConfig

    def objective(self) -> Objective:
        """CE towards the neighbouring classes."""
        return Objective((Term("neighbour_nll", ("forget",), nll, "token_mean"),))

    def encode(self, stream: Stream, model: Task, request: DeletionRequest, run: Run) -> EncodedExamples:
        """Return the forget set with its neighbouring classes."""
        encoded = super().encode(stream, model, request, run)
        assert isinstance(model, Predictor)
        assert isinstance(encoded, LabelledExamples)
        found = nearest_classes(model, encoded, self.config.step, self.config.parity)
        run.notes["neighbours"] = {"unchanged": int((found == encoded.targets).sum())}
        return encoded.with_targets(found)


def nearest_classes(model: Predictor, encoded: LabelledExamples, step: float, parity: bool = False) -> Tensor:
    """Return (N,) the class of each image behind one adversarial step, in evaluation mode.

    Args:
        model: an image classifier; left as it is.
        encoded: N images of one size.
        step: length of the step on the scale of pixels from 0 to 1.
        parity: see ``neighbour_class``; and round, see ``rounded``.
    """
    assert isinstance(model.inputs, ImageInputs)
    mean, std = (torch.tensor(v).reshape(-1, 1, 1).to(model.device) for v in (model.inputs.mean, model.inputs.std))
    training = model.model.training
    model.model.eval()
    out = torch.empty_like(encoded.targets)
    try:
        for batch in length_batches([1] * len(encoded), max(1, model.tokens_per_forward // 4)):
            part = encoded.take(batch)
            pixels = model.batch(part)["pixel_values"].detach().requires_grad_(True)
            true = part.targets.to(model.device)
            loss = F.cross_entropy(model.predict({"pixel_values": pixels}), true, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, pixels)
            with torch.no_grad():
                moved = adversarial_step(pixels, gradient, step / std, -mean / std, (1 - mean) / std)
                moved = rounded(moved, mean, std) if parity else moved
                out[batch] = neighbour_class(model.predict({"pixel_values": moved}), true, parity).cpu()
    finally:
        model.model.train(training)
    return out
