"""Direct preference optimisation: prefer a refusal to the true answer."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from expunge.methods.alternatives import AnswersConfig, AnswersMethod
from expunge.methods.base import MethodConfig
from expunge.methods.terms import RetainConfig
from expunge.tasks.statistics import Statistics
from expunge.training.objective import Objective, Term


class DPOConfig(AnswersConfig, RetainConfig):
    """Hyperparameters of DPO; defaults of open-unlearning's configuration."""

    beta: float = Field(0.1, gt=0, description="inverse temperature of the preference")


def dpo_loss(
    win_nll: Tensor, win_reference_nll: Tensor, lose_nll: Tensor, lose_reference_nll: Tensor, beta: float
) -> Tensor:
    """Per-example DPO loss ``-(2 / beta) log sigmoid(beta (l_w - l_l))``, ``l = log(p / p_reference)`` of an answer.

    Args:
        win_nll: (B,) NLL of the preferred answer *summed* over tokens, under the model being trained.
        win_reference_nll: (B,) the same under the model before unlearning.
        lose_nll: (B,) summed NLL of the answer to be forgotten.
        lose_reference_nll: (B,) the same under the model before unlearning.
        beta: inverse temperature.

    Returns:
        (B,) losses; their mean is the objective.
    """
    win, lose = win_reference_nll - win_nll, lose_reference_nll - lose_nll
    return -(2.0 / beta) * F.logsigmoid(beta * (win - lose))


def preference_term(name: str, beta: float, weight: float) -> Term:
    """DPO between an example's alternative answer, preferred, and its true one."""

    def values(forget: Statistics, alternative: Statistics) -> Tensor:
        assert forget.reference_nll is not None
        assert alternative.reference_nll is not None
        return dpo_loss(
            alternative.sequence_nll, alternative.reference_nll, forget.sequence_nll, forget.reference_nll, beta
        )

    return Term(name, ("forget", "alternative"), values, "example_mean", weight, reference="sequence_nll")


class DPO(AnswersMethod):
    """L = gamma mean_b dpo_loss(refusal, true answer) + alpha L_retain, log-ratios summed over the answer's tokens.

    Every epoch draws a refusal anew for each question. The factor 2 / beta makes the gradient comparable with that of
    NPO, which is the losing half of this loss; it is the form of open-unlearning (its ``DPO`` on refusals). TOFU's own
    code lacks the factor. Fewer ``answers_per_example`` need fewer passes of the reference.

    Source: Rafailov et al. 2023 (arXiv 2305.18290), on refusals in Maini et al. 2024 (TOFU, arXiv 2401.06121).
    """

    id = "dpo"
    title = "prefer a refusal to the true answer, relative to the original model"
    paper = "Rafailov et al. 2023, Direct Preference Optimization, arXiv:2305.18290"
    Config: ClassVar[type[MethodConfig]] = DPOConfig

    def objective(self) -> Objective:
        """The preference term and the retain term."""
        preference = preference_term("dpo", self.config.beta, self.config.forget_weight)
        return Objective((preference, *self.config.retain_terms()))
