"""SatImp: gradient ascent weighted by how saturated and how important each token is."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any, ClassVar

import torch
from pydantic import Field, TypeAdapter, ValidationError, model_validator
from torch import Tensor

from expunge.methods.base import MethodConfig, ObjectiveMethod
from expunge.methods.terms import RetainConfig
from expunge.tasks.statistics import Statistics
from expunge.training.objective import Objective, Term

# What open-unlearning's SatImp.yaml runs with; its class and its documentation have the two the other way round.
PARITY_WEIGHTS = {"forget_weight": 0.1, "retain_weight": 1.0}


class SatImpConfig(RetainConfig):
    """Hyperparameters of SatImp; defaults of the paper (forget : retain = 10 : 1)."""

    beta1: float = Field(5.0, ge=0, description="exponent of p in the weight: saturation, how well a token is known")
    beta2: float = Field(1.0, ge=0, description="exponent of 1 - p in the weight: importance, how surprising it is")
    forget_weight: float = Field(1.0, ge=0, description="weight of the forget loss (gamma)")
    retain_weight: float = Field(0.1, ge=0, description="weight of the retain loss (alpha)")
    parity: bool = Field(
        False,
        description="reproduce the reference's configuration file: forget_weight 0.1 and retain_weight 1 unless they "
        "are given; p and 1 - p before their powers; and the KL retain loss over all B x T positions",
    )

    @model_validator(mode="before")
    @classmethod
    def _reference_weights(cls, values: Any) -> Any:
        # Whatever will be read as true: 1 and "yes" are as well.
        with suppress(ValidationError):
            if isinstance(values, dict) and TypeAdapter(bool).validate_python(values.get("parity", False)):
                return {**PARITY_WEIGHTS, **values}
        return values


def satimp_loss(nll: Tensor, beta1: float, beta2: float, *, parity: bool = False) -> Tensor:
    """Per-token SatImp loss ``-sg(p^beta1 (1 - p)^beta2) nll``, ``p = exp(-nll)`` and sg the stopped gradient.

    Args:
        nll: (R,) negative log-likelihood of each answer token, in nats.
        beta1: exponent of the saturation p.
        beta2: exponent of the importance 1 - p.
        parity: form p and 1 - p before their powers, as the reference does: each is 0 where it is too small for nll's
            precision.

    Returns:
        (R,) losses; their mean over the answer tokens is the objective. Tokens with p near 1 or near 0 hardly count.
        With beta2 = 0 it is ``wga_loss``.
    """
    fixed = nll.detach()
    if parity:
        p = (-fixed).exp()
        weight = p**beta1 * (1 - p) ** beta2
    else:
        weight = (-beta1 * fixed).exp() * (-torch.expm1(-fixed)) ** beta2
    return -weight * nll


class SatImp(ObjectiveMethod):
    """L = gamma mean_t satimp_loss(nll_t) + alpha L_retain, the mean over the answer tokens of the step.

    The paper weighs forget to retain 10 : 1 (gamma 1, alpha 0.1), as do the class and the documentation of
    open-unlearning; its configuration file has gamma 0.1 and alpha 1, which ``parity=True`` takes over.

    Source: Yang et al. 2025, arXiv 2505.11953; ``SatImp`` of open-unlearning.
    """

    id = "satimp"
    title = "gradient ascent weighted per token by saturation and importance"
    paper = "Yang et al. 2025, Exploring Criteria of Loss Reweighting to Enhance LLM Unlearning, arXiv:2505.11953"
    train_defaults: ClassVar[Mapping[str, Any]] = {"epochs": 5}
    Config: ClassVar[type[MethodConfig]] = SatImpConfig

    def objective(self) -> Objective:
        """The weighted ascent and the retain term."""
        config = self.config

        def values(forget: Statistics) -> Tensor:
            return satimp_loss(forget.nll, config.beta1, config.beta2, parity=config.parity)

        ascent = Term("satimp", ("forget",), values, "token_mean", config.forget_weight)
        return Objective((ascent, *config.retain_terms()))
