"""SalUn: random labels, learned by the weights that matter to the forget set alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor

from expunge.errors import BadInput, Problem
from expunge.methods.base import MethodConfig, Run, Unlearned
from expunge.methods.general.random_label import RandomLabel, RandomLabelConfig
from expunge.methods.terms import RetainLoss
from expunge.requests.request import DeletionRequest
from expunge.selections.base import Mask
from expunge.selections.saliency import Saliency, SaliencyConfig
from expunge.tasks.base import Task
from expunge.training.objective import Objective, Penalty, shrink_towards
from expunge.training.settings import SelectSettings


class SalUnConfig(RandomLabelConfig):
    """Hyperparameters of SalUn; defaults of the paper."""

    share: float = Field(0.5, gt=0, le=1, description="share of the weights that may move, the most salient ones")
    retain: RetainLoss = Field("nll", description="loss on the retain set: none, nll, or kl")
    exclude_true_label: bool | None = Field(
        True, description="never draw the true label, as the paper says; the code draws among all"
    )
    resample: Literal["once", "epoch"] = Field(
        "epoch", description="draw labels anew in every epoch, or each once and keep it"
    )
    soft: PositiveFloat | None = Field(
        None, description="SalUn-soft: in the mask's place, weight of the l1 distance from the model before unlearning"
    )
    parity: bool = Field(
        False,
        description="reproduce the authors' code before 2026: gradients alone are masked, so that weight decay moves "
        "all weights; a kl retain loss is averaged over padding too",
    )


class Soft(Penalty):
    """``beta ||theta - theta_0||_1``, by a proximal step after each step of the optimiser.

    Args:
        before: theta_0, by name.
        beta: its weight.
    """

    name = "l1_distance"

    def __init__(self, before: Mapping[str, Tensor], beta: float):
        self.before, self.beta = before, beta

    def add_gradient(self, weights: Mapping[str, Tensor], done: float) -> Tensor:
        """Add nothing, and return the distance."""
        with torch.no_grad():
            return self.beta * torch.stack([(w - self.before[n]).abs().sum() for n, w in weights.items()]).sum()

    def after_step(self, weights: Mapping[str, Tensor], rate: float, done: float) -> None:
        """``theta <- theta_0 + soft(theta - theta_0, rate beta)``."""
        for name, weight in weights.items():
            shrink_towards(weight, self.before[name], rate * self.beta)


class MaskedGradients(Penalty):
    """No penalty: it sets gradients outside a mask to zero, and leaves the weights to decay and momentum.

    Args:
        mask: which gradients stay.
    """

    name = "mask"

    def __init__(self, mask: Mask):
        self.mask = mask

    def add_gradient(self, weights: Mapping[str, Tensor], done: float) -> Tensor:
        """Mask them."""
        for name, weight in weights.items():
            part = self.mask.get(name)
            if weight.grad is not None and part is not None:
                weight.grad.masked_fill_(~part.to(weight.device), 0.0)
        return torch.zeros((), device=next(iter(weights.values())).device)


class SalUn(RandomLabel):
    """L = gamma CE(random label) + alpha CE(retain), theta = m * theta + (1 - m) * theta_0.

    The mask m holds the ``share`` of all weights with the largest ``|d CE(forget) / d theta|`` in the model before
    unlearning. Everything outside stays bitwise as it was; the authors' code before 2026 masked gradients alone, and
    weight decay moved the rest. It is ``random_label`` with ``select.by=saliency``, and any other objective takes that
    selection too; another ``select.by`` given here is used in its place.

    ``soft=beta`` is SalUn-soft: no mask, but ``beta ||theta - theta_0||_1``, whose proximal step puts every weight that
    moved little back to where it was. (The released code fixes how many these are in each step, by a setting that its
    command line does not have.)

    Source: Fan et al. 2024, arXiv 2310.12508, section 4.
    """

    id = "salun"
    title = "random labels, learned by the weights that matter to the forget set"
    needs: ClassVar[tuple[str, ...]] = ("retain",)
    paper = "Fan et al. 2024, SalUn: Empowering Machine Unlearning via Gradient-based Weight Saliency, arXiv:2310.12508"
    Config: ClassVar[type[MethodConfig]] = SalUnConfig

    def apply(self, task: Task, request: DeletionRequest, run: Run) -> Unlearned:
        """Confine the training to the salient weights, unless adapters or another selection are asked for.

        Raises:
            BadInput: see ``ObjectiveMethod.apply``; or ``soft`` or ``parity`` together with adapters or sharding.
        """
        config = self.config
        for name in ("soft", "parity"):
            if getattr(config, name) and (run.train.lora is not None or run.train.sharding != "none"):
                what = "is about the model's own whole weights, and adapters or parts of weights are trained"
                raise BadInput(Problem(name, what, "leave out lora and sharding, or this"))
        if run.train.select is None and run.train.lora is None and config.soft is None and not config.parity:
            select = SelectSettings(by="saliency", share=config.share)
            run = replace(run, train=run.train.model_copy(update={"select": select}))
        return super().apply(task, request, run)

    def objective_for(self, task: Task, request: DeletionRequest, run: Run) -> Objective:
        """Random labels, with what stands in the mask's place."""
        config, objective = self.config, super().objective_for(task, request, run)
        if config.soft is not None:
            before = {name: p.detach().clone() for name, p in task.named_parameters()}
            return replace(objective, penalty=Soft(before, config.soft))
        if config.parity:
            mask = Saliency(SaliencyConfig(share=config.share, parity=True)).build(task, request, run.train.seed)
            return replace(objective, penalty=MaskedGradients(mask))
        return objective
