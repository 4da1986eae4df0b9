"""FLAT: pull a template answer up and push the true answer down, with forget data alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor

from expunge.errors import BadInput, Problem
from expunge.methods.alternatives import AnswersConfig, AnswersMethod
from expunge.methods.base import MethodConfig
from expunge.methods.terms import RetainConfig, RetainLoss
from expunge.tasks.statistics import IGNORED, Statistics
from expunge.training.objective import Objective, Term

Divergence = Literal["tv", "kl", "js", "pearson", "jeffrey"]
INVERTED = {
    "reverse_kl": "raises the answer to be forgotten and lowers the template",
    "squared_hellinger": "raises the answer to be forgotten and lowers the template",
    "neyman": "lowers both answers",
}


def _why_not(divergence: str) -> str | None:
    reason = INVERTED.get(divergence.lower().replace("-", "_").replace(" ", "_"))
    return f"is left out: its published form has the wrong sign and {reason}" if reason else None


class FLATConfig(AnswersConfig, RetainConfig):
    """Hyperparameters of FLAT; defaults of the authors' TOFU configuration. No retain set is needed."""

    divergence: Divergence = Field(
        "tv", description="f-divergence between template and forget answers: total variation, KL, JS, Pearson, Jeffrey"
    )
    retain: RetainLoss = Field("none", description="loss on a retain set, if there is one: none, nll, or kl")
    parity: bool = Field(
        False,
        description="reproduce the authors' code: probabilities averaged over all B x (T - 1) slots of a micro-batch "
        "before the divergence; and the KL retain loss over all positions",
    )
    parity_length: int = Field(
        500, ge=2, description="T of parity: the length that the authors' code pads every example to"
    )

    @field_validator("divergence", mode="before")
    @classmethod
    def _points_the_right_way(cls, value: Any) -> Any:
        reason = _why_not(value) if isinstance(value, str) else None
        if reason is not None:
            raise ValueError(f"{reason}; use one of {', '.join(get_args(Divergence))}")
        return value


def flat_loss(template_probability: Tensor, forget_probability: Tensor, divergence: str) -> Tensor:
    """FLAT loss ``-g(a) + f*(g(c))`` of the variational form of an f-divergence.

    It falls in ``a`` and rises in ``c``.

    Args:
        template_probability: ``a``, (B,) or scalar: probability of the template answer's tokens, averaged.
        forget_probability: ``c``, of the same shape: the same for the answer to be forgotten.
        divergence: "tv", "kl", "js", "pearson" or "jeffrey".

    Returns:
        Losses of the same shape; their mean is the objective.

    Raises:
        BadInput: another divergence; three that the authors publish point the wrong way and are named with the reason.
    """
    a, c = template_probability, forget_probability
    match divergence:
        case "tv":
            return torch.tanh(c) / 2 - torch.tanh(a) / 2
        case "kl":
            return torch.exp(c - 1) - a
        case "js":
            return F.softplus(-a) + F.softplus(c) - 2 * math.log(2)
        case "pearson":
            return c + c.square() / 4 - a
        case "jeffrey":
            return c + c.square() / 4 + c.pow(3) / 16 - a
    what = _why_not(divergence) or f"'{divergence}' is not known"
    raise BadInput(Problem(f"divergence {divergence}", what, f"use one of {', '.join(get_args(Divergence))}"))


def flat_reference_loss(
    template_logits: Tensor, template_labels: Tensor, forget_logits: Tensor, forget_labels: Tensor, divergence: str
) -> Tensor:
    """Return FLAT as the authors' code computes it on a padded batch; a scalar.

    The probabilities are averaged over all B * (T - 1) slots, masked ones counting as 0, and the divergence is applied
    once to these two numbers. A longer answer weighs more, and padding shrinks the gradient.

    Args:
        template_logits: (B, T, V) on question and template answer.
        template_labels: (B, T), -100 where there is no label; position t predicts the label at t + 1.
        forget_logits: (B, T', V) on question and answer to be forgotten.
        forget_labels: (B, T').
        divergence: as in ``flat_loss``.
    """
    a, c = (
        _label_probability(logits[:, :-1], labels[:, 1:]).mean()
        for logits, labels in ((template_logits, template_labels), (forget_logits, forget_labels))
    )
    return flat_loss(a, c, divergence)


def _label_probability(logits: Tensor, labels: Tensor) -> Tensor:
    """Probability of each label, 0 where there is none; (..., V) and (...) to (...)."""
    precise = torch.promote_types(logits.dtype, torch.float32)
    chosen = torch.log_softmax(logits, dim=-1, dtype=precise).gather(-1, labels.clamp_min(0)[..., None])[..., 0]
    return chosen.exp().masked_fill(labels == IGNORED, 0.0)


def summed_probability(statistics: Statistics) -> Tensor:
    """(B,) probability of the answer's tokens, summed over them."""
    return statistics.per_example((-statistics.nll).exp().masked_fill(statistics.targets == IGNORED, 0.0))


class FLAT(AnswersMethod):
    """L = mean_b [ -g(a_b) + f*(g(c_b)) ], a_b and c_b the mean token *probability* of template and true answer.

    The divergence is applied per example, as in the paper's expectation, and averaged over examples; ``parity=true``
    gives the authors' code, one average over all slots before the divergence, per micro-batch. Every epoch draws a
    template anew for each question: refusals unless other answers are named. Only forget data is needed; a retain loss
    can be added. Reverse KL, squared Hellinger and Neyman, which the authors also list, are refused: as published they
    do not lower the true answer and raise the template.

    The gradient of a probability fades with it, so a template that the model finds improbable is picked up slowly:
    take templates that it can already say.

    Source: Wang et al. 2024, LLM Unlearning via Loss Adjustment with Only Forget Data, arXiv 2410.11143.
    """

    id = "flat"
    title = "pull a template answer up and the true one down by an f-divergence; forget data alone"
    paper = "Wang et al. 2024, LLM Unlearning via Loss Adjustment with Only Forget Data, arXiv:2410.11143"
    train_defaults: ClassVar[Mapping[str, Any]] = {"epochs": 5, "batch_size": 64, "micro_batch_size": 16}
    Config: ClassVar[type[MethodConfig]] = FLATConfig

    def objective(self) -> Objective:
        """The divergence between template and true answer, and a retain term if asked for."""
        config = self.config

        def values(forget: Statistics, alternative: Statistics) -> Tensor:
            if config.parity:
                slots = len(forget) * (config.parity_length - 1)
                a, c = (summed_probability(s).sum() / slots for s in (alternative, forget))
                return flat_loss(a, c, config.divergence).expand(len(forget))
            a, c = (summed_probability(s) / s.counts for s in (alternative, forget))
            return flat_loss(a, c, config.divergence)

        divergence = Term("flat", ("forget", "alternative"), values, "example_mean", config.forget_weight)
        return Objective((divergence, *config.retain_terms()))
