"""Gradient ascent: raise the loss on the forget set."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from expunge.methods.base import MethodConfig, ObjectiveMethod
from expunge.tasks.kinds import KINDS
from expunge.tasks.statistics import Statistics
from expunge.training.objective import Objective, Term


class GradientAscentConfig(MethodConfig):
    """Hyperparameters of gradient ascent."""

    forget_weight: float = Field(1.0, gt=0, description="weight of the ascent")


def gradient_ascent_loss(nll: Tensor) -> Tensor:
    """Per-token loss of gradient ascent, ``-nll``.

    Args:
        nll: (R,) negative log-likelihood of each answer token of the forget set, in nats.

    Returns:
        (R,) losses; their mean over all answer tokens, not over examples, is the objective.
    """
    return -nll


class GradientAscent(ObjectiveMethod):
    """L = -CE(forget), averaged over the answer tokens of the step. Unbounded: stop it in time.

    Source: Jang et al. 2023 (arXiv 2210.01504); the trainer ``GradAscent`` of open-unlearning.
    """

    id = "gradient_ascent"
    title = "raise the loss on the forget set"
    tasks: ClassVar[tuple[str, ...]] = KINDS
    paper = "Jang et al. 2023, Knowledge Unlearning for Mitigating Privacy Risks in Language Models, arXiv:2210.01504"
    Config: ClassVar[type[MethodConfig]] = GradientAscentConfig

    def objective(self) -> Objective:
        """-CE(forget), token mean."""

        def values(forget: Statistics) -> Tensor:
            return gradient_ascent_loss(forget.nll)

        return Objective((Term("forget_ascent", ("forget",), values, "token_mean", self.config.forget_weight),))
