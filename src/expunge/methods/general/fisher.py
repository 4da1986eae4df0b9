"""Fisher forgetting: noise on every weight, the more the less the kept data depends on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from expunge.errors import BadInput, Problem
from expunge.methods.base import EditingMethod, MethodConfig, Run
from expunge.requests.request import DeletionRequest
from expunge.selections.importance import differentiable, squared_gradients
from expunge.tasks.base import Task
from expunge.tasks.kinds import CLASSIFIERS, KINDS
from expunge.tasks.predictor import Predictor
from expunge.training.plan import draw

# Bounds of the variance before it is scaled, of the whole model and of its head.
MOST, MOST_HEAD = 1e3, 1e2
FORGOTTEN_CLASS_VARIANCE = 1e-4


class FisherConfig(MethodConfig):
    """Hyperparameters of Fisher forgetting."""

    alpha: PositiveFloat = Field(1e-6, description="scale of the variance; the authors use 1e-9 to 1e-6")
    head_factor: PositiveFloat = Field(10.0, description="further factor on the head, biases and norms")
    passes: PositiveInt = Field(
        16,
        description="most backward passes per example: a classifier of more classes has the sum over its classes "
        "estimated, without bias, along this many random directions",
    )
    parity: bool = Field(
        False,
        description="reproduce a common port, for classifiers: squared gradients of batch means, weighted by the mean "
        "probabilities of a batch, in the place of the Fisher information",
    )
    parity_batch_size: PositiveInt = Field(32, description="batch size of parity")


def noise_variance(fisher: Tensor, alpha: float, *, head: bool, head_factor: float = 10.0) -> Tensor:
    """Return the variance of the noise on one parameter.

    ``alpha min(1 / (F + 1e-8), 1e3)``; of matrices, averaged over the second dimension, so that a unit's weights get
    one variance; the head and parameters of one dimension get ``head_factor`` times as much, the head after a bound of
    1e2 instead.

    Args:
        fisher: Fisher information of each weight, any shape.
        alpha: scale.
        head: whether the parameter belongs to the last layer.
        head_factor: see above.

    Returns:
        Variances of the same shape.
    """
    variance = (1 / (fisher + 1e-8)).clamp(max=MOST)
    if head:
        variance = variance.clamp(max=MOST_HEAD)
    variance = variance * alpha
    if variance.dim() > 1:
        variance = variance.mean(1, keepdim=True).expand_as(variance).clone()
    return variance * head_factor if head or variance.dim() == 1 else variance


def port_information(
    predict: Callable[[Sequence[int]], Tensor],
    batches: Sequence[Sequence[int]],
    parameters: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """Return what a common port takes for the Fisher information of a classifier.

    ``1/#batches sum_B sum_c mean_{x in B} p(c|x) (d mean_{x in B} CE(f(x), c) / d theta)^2``: squares of means instead
    of means of squares, about 1/B of the information.

    Args:
        predict: maps the indices of a batch to (B, C) logits.
        batches: indices, in order.
        parameters: with respect to what, by name.

    Returns:
        Name -> float32 tensor of the parameter's shape.
    """
    total = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in parameters.items()}
    for batch in batches:
        with torch.enable_grad():
            log_p = torch.log_softmax(predict(batch).float(), -1)
        shares, losses = log_p.detach().exp().mean(0), -log_p.mean(0)
        for share, loss in zip(shares, losses, strict=True):
            found = torch.autograd.grad(loss, list(parameters.values()), retain_graph=True, allow_unused=True)
            for name, gradient in zip(parameters, found, strict=True):
                if gradient is not None:
                    total[name] += share * gradient.float().square() / len(batches)
    return total


class Fisher(EditingMethod):
    """theta' = theta + sqrt(var) eps, eps ~ N(0, 1) by the run's seed, ``var`` from the Fisher information of retain.

    ``F_j = 1/N sum_{x in retain} sum_c p(c|x) (d log p(c|x) / d theta_j)^2``, the model's own distribution in the place
    of labels (estimated where there are more than ``passes`` of them, see ``squared_gradients``); see
    ``noise_variance`` for what follows from it. Where a whole class is forgotten (``scenario="class"``), the head's row
    of that class is drawn around 0 with variance 1e-4 times the head's factor.

    ``parity=True`` takes ``port_information`` for F. (That port also knows the head by its shape alone, and a class
    that is forgotten by the size of the forget set.)

    Source: Golatkar et al. 2020, section 4 and the authors' notebook.
    """

    id = "fisher"
    title = "add noise where the kept data does not depend on the weights; no training"
    tasks: ClassVar[tuple[str, ...]] = KINDS
    needs: ClassVar[tuple[str, ...]] = ("retain",)
    paper = "Golatkar et al. 2020, Eternal Sunshine of the Spotless Net, arXiv:1911.04933"
    Config: ClassVar[type[MethodConfig]] = FisherConfig

    def check(self, task: Task, request: DeletionRequest) -> None:
        """Refuse also parity for what is not a classifier.

        Raises:
            BadInput: see ``Method.check``; or such a model.
        """
        super().check(task, request)
        if self.config.parity and task.kind not in CLASSIFIERS:
            what = f"sums over the classes of a classifier, and this is a {task.kind}"
            raise BadInput(Problem(f"method {self.id}: parity", what, "leave parity off"))

    def edit(self, model: Task, request: DeletionRequest, run: Run) -> dict[str, Any]:
        """Measure the Fisher information of the retain set and add the noise."""
        config, gone = self.config, self._gone(model, request)
        parameters, heads = dict(model.named_parameters()), set(model.head_parameters())
        retain = model.encode(request.retain)
        if config.parity:
            assert isinstance(model, Predictor)
            fisher = _port(model, retain, parameters, config.parity_batch_size)
        else:
            seed, passes = draw(run.train.seed, "fisher directions") % 2**63, config.passes
            fisher = squared_gradients(model, retain, parameters, kind="fisher", seed=seed, passes=passes)
        generator = torch.Generator().manual_seed(draw(run.train.seed, "fisher") % 2**63)
        with torch.no_grad():
            for name, weight in parameters.items():
                head = name in heads
                variance = noise_variance(fisher[name], config.alpha, head=head, head_factor=config.head_factor)
                centre = weight.float()
                if head and gone is not None:
                    centre, variance = centre.clone(), variance.clone()
                    centre[gone], variance[gone] = 0.0, FORGOTTEN_CLASS_VARIANCE * config.head_factor
                noise = torch.randn(weight.shape, generator=generator).to(weight.device)
                weight.copy_(centre + variance.sqrt() * noise)
        return {} if gone is None else {"class": gone}

    def _gone(self, model: Task, request: DeletionRequest) -> int | None:
        """The class that is forgotten as a whole."""
        if request.scenario != "class" or model.kind not in CLASSIFIERS:
            return None
        encoded = model.encode(request.forget)
        found = sorted({int(label) for label in getattr(encoded, "targets", [])})
        if len(found) != 1:
            what = f"scenario is class, and the forget set holds {len(found)} classes"
            raise BadInput(Problem(f"method {self.id}", what, "forget one class at a time, or name another scenario"))
        return found[0]


def _port(model: Predictor, encoded: Any, parameters: Mapping[str, Tensor], size: int) -> dict[str, Tensor]:
    """``port_information`` of examples, in evaluation mode."""
    batches = [list(range(k, min(k + size, len(encoded)))) for k in range(0, len(encoded), size)]
    with differentiable(model, parameters):
        model.cost.forwards += len(batches)
        model.cost.backwards += len(batches) * (model.outcomes or 0)
        model.cost.sequences += len(encoded)
        return port_information(lambda batch: model.predict(model.batch(encoded.take(batch))), batches, parameters)
