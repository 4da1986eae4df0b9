"""Refusal training: answer the questions to be forgotten with "I don't know"."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor

from expunge.methods.alternatives import AnswersConfig, AnswersMethod
from expunge.methods.base import MethodConfig
from expunge.methods.terms import RetainConfig
from expunge.tasks.statistics import IGNORED, Statistics
from expunge.training.objective import Objective, Term, nll


class IDKConfig(AnswersConfig, RetainConfig):
    """Hyperparameters of refusal training; weights 1 as in TOFU."""

    parity: bool = Field(
        False,
        description="reproduce TOFU: with retain=nll one mean over the tokens of refusals and retain answers together, "
        "per micro-batch; with retain=kl the KL averaged over all B x T positions",
    )

    @field_validator("parity")
    @classmethod
    def _weights_are_one(cls, parity: bool, info: ValidationInfo) -> bool:
        weights = {info.data.get("forget_weight"), info.data.get("retain_weight")}
        if parity and info.data.get("retain") == "nll" and weights != {1.0}:
            raise ValueError("one mean over both sets has no weights: leave forget_weight and retain_weight at 1")
        return parity


def idk_loss(refusal_nll: Tensor, retain_nll: Tensor | None = None) -> Tensor:
    """Cross entropy of the refusals, or TOFU's mean over the tokens of refusals and retain answers together.

    Args:
        refusal_nll: (R,) NLL of the tokens of the refusals.
        retain_nll: (R',) NLL of the tokens of the retain answers; whichever has more tokens then counts more.

    Returns:
        The mean, a scalar.
    """
    if retain_nll is None:
        return refusal_nll.mean()
    return (refusal_nll.sum() + retain_nll.sum()) / (refusal_nll.numel() + retain_nll.numel())


def _together(alternative: Statistics, retain: Statistics) -> Tensor:
    """(B,) the joint mean, for every example: TOFU's mean of a micro-batch, averaged over micro-batches."""
    rows = [s.nll[s.targets != IGNORED] for s in (alternative, retain)]
    return idk_loss(rows[0], rows[1]).expand(len(alternative))


class IDK(AnswersMethod):
    """L = gamma CE(refusal | question to forget) + alpha L_retain, each averaged over its answer tokens of the step.

    Every epoch draws a refusal anew for each question. TOFU takes one token mean over the concatenation of both sets
    (``parity=true``), so the set with longer answers dominates and a step depends on its micro-batches.

    Source: Maini et al. 2024, TOFU, arXiv 2401.06121 (its "idk" loss).
    """

    id = "idk"
    title = "train refusals to the questions to forget"
    paper = "Maini et al. 2024, TOFU: A Task of Fictitious Unlearning for LLMs, arXiv:2401.06121"
    Config: ClassVar[type[MethodConfig]] = IDKConfig

    def objective(self) -> Objective:
        """The cross entropy of refusals and the retain term."""
        config = self.config
        if config.parity and config.retain == "nll":
            return Objective((Term("idk_and_retain", ("alternative", "retain"), _together, "example_mean"),))
        refusals = Term("idk", ("alternative",), nll, "token_mean", config.forget_weight)
        return Objective((refusals, *config.retain_terms()))
