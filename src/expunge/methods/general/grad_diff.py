"""Gradient difference: raise the loss on the forget set while holding the retain set."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from expunge.methods.base import MethodConfig, ObjectiveMethod
from expunge.methods.terms import RetainConfig
from expunge.tasks.kinds import KINDS
from expunge.training.objective import Objective, Term, negative_nll


class GradDiffConfig(RetainConfig):
    """Hyperparameters of gradient difference; defaults of open-unlearning (gamma 1, alpha 1, NLL)."""


def grad_diff_loss(
    forget_nll: Tensor, retain: Tensor, forget_weight: float = 1.0, retain_weight: float = 1.0
) -> Tensor:
    """Return ``-gamma mean_t nll_t + alpha mean_t r_t``, each a mean over all rows of its set; a scalar.

    Args:
        forget_nll: (R,) negative log-likelihood of each answer token of the forget set, in nats.
        retain: (R',) that of the retain set, or ``row_kl`` of each of its rows, for "KL minimisation".
        forget_weight: gamma.
        retain_weight: alpha.
    """
    return retain_weight * retain.mean() - forget_weight * forget_nll.mean()


class GradDiff(ObjectiveMethod):
    """L = -gamma CE(forget) + alpha L_retain, with L_retain either CE(retain) or KL(reference || model) on retain.

    CE is averaged over the answer tokens of the step. Source: Liu et al. 2022 (arXiv 2203.12817); ``GradDiff`` of
    open-unlearning and TOFU; with ``retain=kl`` TOFU's "KL minimisation".
    """

    id = "grad_diff"
    title = "raise the loss on the forget set, hold it on the retain set"
    tasks: ClassVar[tuple[str, ...]] = KINDS
    paper = "Liu et al. 2022, Continual Learning and Private Unlearning, arXiv:2203.12817"
    Config: ClassVar[type[MethodConfig]] = GradDiffConfig

    def objective(self) -> Objective:
        """-gamma CE(forget) + alpha L_retain."""
        ascent = Term("forget_ascent", ("forget",), negative_nll, "token_mean", self.config.forget_weight)
        return Objective((ascent, *self.config.retain_terms()))
