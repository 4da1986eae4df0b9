"""EU-k: exact unlearning of the last k layers."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field, PositiveInt
from torch import nn

from expunge.methods.base import MethodConfig, ObjectiveMethod, Run
from expunge.selections.base import Mask
from expunge.selections.layers import last_layers, layers_of
from expunge.tasks.base import Task
from expunge.tasks.kinds import KINDS
from expunge.training.objective import Objective, Term, nll
from expunge.training.plan import draw


class EUKConfig(MethodConfig):
    """Hyperparameters of EU-k."""

    k: PositiveInt = Field(2, description="how many of the last layers start again and are trained")


class EUK(ObjectiveMethod):
    """L = CE(retain), the last k layers from fresh weights, once, and all other weights bitwise as they were.

    Exact for those layers alone: what the others learned of the forget set stays, so the level is approximate.
    A tied output embedding is the input embedding too, and both start again. Running statistics of batch normalisation
    start again with their layer, and follow the retain set in all of them.

    Source: Goel et al. 2022, section 4.
    """

    id = "eu_k"
    title = "start the last layers again and train them on the retain set"
    starts_over: ClassVar[bool] = True
    tasks: ClassVar[tuple[str, ...]] = KINDS
    needs: ClassVar[tuple[str, ...]] = ("retain",)
    paper = "Goel et al. 2022, Towards Adversarial Evaluations for Inexact Machine Unlearning, arXiv:2201.06640"
    Config: ClassVar[type[MethodConfig]] = EUKConfig

    def objective(self) -> Objective:
        """CE(retain), token mean."""
        return Objective((Term("retain_nll", ("retain",), nll, "token_mean"),), anchor="retain")

    def required(self) -> tuple[str, ...]:
        """The retain set."""
        return ("retain",)

    def start(self, task: Task, run: Run) -> Task:
        """Return a copy whose last k layers have weights and buffers of a fresh model of the run's seed."""
        model = super().start(task, run)
        fresh = task.fresh(draw(run.train.seed, "eu_k") % 2**31)
        pairs = zip(layers_of(model)[-self.config.k :], layers_of(fresh)[-self.config.k :], strict=True)
        with torch.no_grad():
            for (_, old), (_, new) in pairs:
                for own in (nn.Module.named_parameters, nn.Module.named_buffers):
                    values = dict(own(new, recurse=False))
                    for name, value in own(old, recurse=False):
                        value.copy_(values[name])
        return model

    def confined(self, model: Task) -> Mask:
        """The last k layers."""
        return last_layers(model, self.config.k)
