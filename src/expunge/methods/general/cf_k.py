"""CF-k: catastrophic forgetting of the last k layers."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, PositiveInt

from expunge.methods.base import MethodConfig, ObjectiveMethod
from expunge.selections.base import Mask
from expunge.selections.layers import last_layers
from expunge.tasks.base import Task
from expunge.tasks.kinds import KINDS
from expunge.training.objective import Objective, Term, nll


class CFKConfig(MethodConfig):
    """Hyperparameters of CF-k."""

    k: PositiveInt = Field(2, description="how many of the last layers are trained; all others stay as they are")


class CFK(ObjectiveMethod):
    """L = CE(retain), the last k layers training and all other weights bitwise as they were.

    A layer is a module with weights of its own: a linear layer, a convolution, a norm; the head is the last. Running
    statistics of batch normalisation are no weights, and follow the retain set in all layers.

    Source: Goel et al. 2022, section 4: forgetting by going on without the forget set, where it is cheap.
    """

    id = "cf_k"
    title = "train the last layers on the retain set only"
    tasks: ClassVar[tuple[str, ...]] = KINDS
    needs: ClassVar[tuple[str, ...]] = ("retain",)
    paper = "Goel et al. 2022, Towards Adversarial Evaluations for Inexact Machine Unlearning, arXiv:2201.06640"
    Config: ClassVar[type[MethodConfig]] = CFKConfig

    def objective(self) -> Objective:
        """CE(retain), token mean."""
        return Objective((Term("retain_nll", ("retain",), nll, "token_mean"),), anchor="retain")

    def required(self) -> tuple[str, ...]:
        """The retain set."""
        return ("retain",)

    def confined(self, model: Task) -> Mask:
        """The last k layers."""
        return last_layers(model, self.config.k)
