"""EU-k: exact unlearning of the last k layers."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field, PositiveInt

from expunge.methods.base import MethodConfig, ObjectiveMethod, Run
from expunge.selections.base import Mask
from expunge.selections.layers import last_layers
from expunge.tasks.base import Task
from expunge.tasks.kinds import KINDS
from expunge.training.objective import Objective, Term, nll
from expunge.training.plan import draw


class EUKConfig(MethodConfig):
    """Hyperparameters of EU-k."""

    k: PositiveInt = Field(2, description="how many of the last layers start again and are trained")


class EUK(ObjectiveMethod):
    """L = CE(retain), the last k layers from fresh weights, once, and all others bitwise as they were.

    Exact for those layers alone: what the others learned of the forget set stays, so the level is approximate.
    A tied output embedding is the input embedding too, and both start again.

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
        """Return a copy whose last k layers have the weights of a fresh model of the run's seed."""
        model = super().start(task, run)
        fresh = dict(task.fresh(draw(run.train.seed, "eu_k") % 2**31).named_parameters())
        with torch.no_grad():
            for name, p in model.named_parameters():
                if name in last_layers(model, self.config.k):
                    p.copy_(fresh[name])
        return model

    def confined(self, model: Task) -> Mask:
        """The last k layers."""
        return last_layers(model, self.config.k)
