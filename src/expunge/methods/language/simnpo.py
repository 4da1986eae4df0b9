"""SimNPO: NPO without a reference model, normalised by length."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from expunge.methods.base import MethodConfig, ObjectiveMethod
from expunge.methods.terms import RetainConfig
from expunge.tasks.statistics import IGNORED, Statistics
from expunge.training.objective import Objective, Term


class SimNPOConfig(RetainConfig):
    """Hyperparameters of SimNPO; defaults of open-unlearning's configuration (beta 4.5, gamma 0.125)."""

    beta: float = Field(4.5, gt=0, description="inverse temperature")
    margin: float = Field(0.0, ge=0, description="margin (delta) that the mean answer NLL is compared with")
    margin_outside: bool = Field(
        False,
        description="subtract the margin after multiplying by beta (the paper's form), not before (its code's)",
    )
    forget_weight: float = Field(0.125, ge=0, description="weight of the forget loss (gamma)")


def simnpo_loss(mean_nll: Tensor, beta: float, margin: float = 0.0, margin_outside: bool = False) -> Tensor:
    """Per-example SimNPO loss ``-(2 / beta) log sigmoid(beta (mean_nll - margin))``.

    Args:
        mean_nll: (B,) answer NLL *averaged* over tokens.
        beta: inverse temperature.
        margin: the margin.
        margin_outside: use ``beta * mean_nll - margin`` instead, the paper's form.

    Returns:
        (B,) losses; their mean is the objective.
    """
    inside = beta * mean_nll - margin if margin_outside else beta * (mean_nll - margin)
    return -(2.0 / beta) * F.logsigmoid(inside)


def simnpo_reference_loss(logits: Tensor, labels: Tensor, beta: float, margin: float = 0.0) -> Tensor:
    """SimNPO as the authors' code and open-unlearning compute it on a padded batch; a scalar.

    They divide by the number of labels before the shift. Where the first token of a text is a label, which nothing
    predicts, that is one too many; an example without a label makes it NaN.

    Args:
        logits: (B, T, V), unshifted.
        labels: (B, T) int64, unshifted; -100 where there is no label.
        beta: inverse temperature.
        margin: the margin, within beta.
    """
    precise = logits[:, :-1].to(torch.promote_types(logits.dtype, torch.float32))
    nll = F.cross_entropy(precise.transpose(1, 2), labels[:, 1:], ignore_index=IGNORED, reduction="none")
    return simnpo_loss(nll.sum(1) / (labels != IGNORED).sum(1), beta, margin).mean()


class SimNPO(ObjectiveMethod):
    """L = gamma mean_b simnpo_loss(N_b / n_b) + alpha L_retain.

    Source: Fan et al. 2024, Simplicity Prevails: Rethinking Negative Preference Optimization, arXiv 2410.07163.
    """

    id = "simnpo"
    title = "NPO without a reference model, normalised by answer length"
    paper = "Fan et al. 2024, Simplicity Prevails, arXiv:2410.07163"
    Config: ClassVar[type[MethodConfig]] = SimNPOConfig

    def objective(self) -> Objective:
        """The length-normalised preference term and the retain term."""
        config = self.config

        def values(forget: Statistics) -> Tensor:
            return simnpo_loss(forget.mean_nll, config.beta, config.margin, config.margin_outside)

        preference = Term("simnpo", ("forget",), values, "example_mean", config.forget_weight)
        return Objective((preference, *config.retain_terms()))
