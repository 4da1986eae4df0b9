"""Negative preference optimisation: a bounded replacement for gradient ascent."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from expunge.methods.base import MethodConfig, ObjectiveMethod
from expunge.methods.terms import RetainConfig
from expunge.tasks.kinds import KINDS
from expunge.tasks.statistics import Statistics
from expunge.training.objective import Objective, Term


class NPOConfig(RetainConfig):
    """Hyperparameters of NPO; defaults of the authors' TOFU configuration."""

    beta: float = Field(0.1, gt=0, description="inverse temperature; towards 0 the loss becomes gradient ascent")


def npo_loss(nll: Tensor, reference_nll: Tensor, beta: float) -> Tensor:
    """Per-example NPO loss ``-(2 / beta) log sigmoid(beta (nll - reference_nll))``.

    Args:
        nll: (B,) answer NLL *summed* over tokens, under the model being trained.
        reference_nll: (B,) the same under the model before unlearning.
        beta: inverse temperature.

    Returns:
        (B,) losses; their mean is the objective. The gradient is that of gradient ascent on the summed NLL, weighted
        per example by ``2 sigmoid(-beta (nll - reference_nll))``, which goes to 0 once an example is forgotten.
    """
    return -(2.0 / beta) * F.logsigmoid(beta * (nll - reference_nll))


def muse_npo_loss(logits: Tensor, reference_logits: Tensor, beta: float) -> Tensor:
    """Return what MUSE's code calls NPO; a scalar, for comparison only.

    ``-(2 / beta) mean log sigmoid(beta (z_ref - z))`` over *every number* of the logits: all positions, padding too,
    and all tokens of the vocabulary, whatever the answer is. It is no likelihood, and lowers every logit. The released
    code of SimNPO for MUSE has the same form.

    Args:
        logits: (B, T, V) of the model being trained.
        reference_logits: (B, T, V) of the model before unlearning.
        beta: inverse temperature.
    """
    precise = torch.promote_types(logits.dtype, torch.float32)
    return npo_loss(-logits.to(precise), -reference_logits.detach().to(precise), beta).mean()


class NPO(ObjectiveMethod):
    """L = gamma mean_b npo_loss(N_b, N_b^ref) + alpha L_retain, N_b the answer NLL summed over its tokens.

    ``retain=nll`` is the paper's NPO+RT (NPO-GradDiff in its code), ``retain=kl`` its NPO+KL, ``retain=none`` plain
    NPO.

    Source: Zhang et al. 2024, Negative Preference Optimization, arXiv 2404.05868.
    """

    id = "npo"
    title = "push answers below the original model's likelihood, with a force that fades"
    tasks: ClassVar[tuple[str, ...]] = KINDS
    paper = "Zhang et al. 2024, Negative Preference Optimization, arXiv:2404.05868"
    Config: ClassVar[type[MethodConfig]] = NPOConfig

    def objective(self) -> Objective:
        """The preference term and the retain term."""
        beta = self.config.beta

        def values(forget: Statistics) -> Tensor:
            assert forget.reference_nll is not None
            return npo_loss(forget.sequence_nll, forget.reference_nll, beta)

        preference = Term(
            "npo", ("forget",), values, "example_mean", self.config.forget_weight, reference="sequence_nll"
        )
        return Objective((preference, *self.config.retain_terms()))
