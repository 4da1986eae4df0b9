"""Weighted gradient ascent: ascend most on the tokens that are still likely."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor

from expunge.methods.base import MethodConfig, ObjectiveMethod
from expunge.methods.terms import RetainConfig
from expunge.tasks.statistics import Statistics
from expunge.training.objective import Objective, Term


class WGAConfig(RetainConfig):
    """Hyperparameters of WGA; defaults of open-unlearning's configuration (beta 1, gamma 1, alpha 1)."""

    beta: float = Field(
        1.0, ge=0, description="exponent of the token's probability in its weight; 0 is gradient ascent"
    )


def wga_loss(nll: Tensor, beta: float, *, parity: bool = False) -> Tensor:
    """Per-token WGA loss ``-sg(p^beta) nll``, ``p = exp(-nll)`` and sg the stopped gradient.

    Args:
        nll: (R,) negative log-likelihood of each answer token, in nats.
        beta: exponent of the weight.
        parity: form p before its power, as the reference does: it is 0 where p is too small for nll's precision (beyond
            103 nats in float32), and so is the weight, though p^beta may be far from it.

    Returns:
        (R,) losses; their mean over the answer tokens is the objective. The gradient is that of gradient ascent,
        weighted per token by ``p^beta``, which goes to 0 once a token is forgotten.
    """
    fixed = nll.detach()
    weight = (-fixed).exp() ** beta if parity else (-beta * fixed).exp()
    return -weight * nll


class WGA(ObjectiveMethod):
    """L = gamma mean_t wga_loss(nll_t) + alpha L_retain, the mean over the answer tokens of the step.

    Source: Wang et al. 2025, Rethinking LLM Unlearning Objectives, arXiv 2502.19301; ``WGA`` of open-unlearning.
    """

    id = "wga"
    title = "gradient ascent weighted per token by a power of its probability"
    paper = "Wang et al. 2025, Rethinking LLM Unlearning Objectives: A Gradient Perspective, arXiv:2502.19301"
    train_defaults: ClassVar[Mapping[str, Any]] = {"epochs": 5}
    Config: ClassVar[type[MethodConfig]] = WGAConfig

    def objective(self) -> Objective:
        """The weighted ascent and the retain term."""
        config = self.config

        def values(forget: Statistics) -> Tensor:
            return wga_loss(forget.nll, config.beta, parity=config.parity)

        ascent = Term("wga", ("forget",), values, "token_mean", config.forget_weight)
        return Objective((ascent, *config.retain_terms()))
