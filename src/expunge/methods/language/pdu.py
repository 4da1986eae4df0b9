"""PDU: flatten the answer's logits on the forget set, under a bound on the retain loss that a dual variable holds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from expunge.methods.base import MethodConfig, ObjectiveMethod
from expunge.methods.terms import RetainConfig
from expunge.tasks.statistics import IGNORED, Statistics
from expunge.training.objective import MovingWeight, Objective, Term


class PDUConfig(RetainConfig):
    """Hyperparameters of PDU; defaults of the authors' TOFU runs. The bound belongs to the data: see ``bound``."""

    bound: float = Field(
        0.3,
        description="retain loss that is allowed, in nats per token (epsilon): somewhat above that of the model given; "
        "the authors take 0.3 on TOFU, 1.5 on MUSE news and 0.1 on MUSE books",
    )
    retain: Literal["nll", "kl"] = Field(
        "nll", description="retain loss that is bounded: nll, or kl to the model before unlearning"
    )
    retain_weight: float = Field(100.0, ge=0, description="dual variable (lambda) at the start, and in the warm-up")
    dual_step_size: float = Field(5.0, ge=0, description="how fast the dual variable follows the violation (eta)")
    dual_warmup_epochs: int = Field(5, ge=0, description="epochs before the dual variable moves")
    parity: bool = Field(
        False,
        description="reproduce the reference: forget rows one position late, and a dual variable that moves after "
        "every micro-batch; and KL over all positions",
    )


def pdu_loss(logits: Tensor) -> Tensor:
    """Per-token logit-margin loss ``(max_v z_v - mean_v z_v)^2``: 0 where the prediction is uniform.

    Args:
        logits: (R, V), or (..., V).

    Returns:
        (R,) losses; their mean over the answer tokens is the objective. A constant added to all logits of a row
        changes nothing. Of several highest logits the first one takes the gradient, as in the authors' code; in low
        precision such ties are common.
    """
    precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return (precise.max(-1).values - precise.mean(-1)).square()


def pdu_reference_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """PDU's forget loss as its code computes it on a padded batch: its mask has no shift; a scalar.

    The row that predicts the first answer token is left out, and the one behind the last is counted.

    Args:
        logits: (B, T, V), unshifted.
        labels: (B, T) int64, unshifted; -100 where there is no label.
    """
    mask = labels != IGNORED
    return (pdu_loss(logits) * mask).sum() / mask.sum()


def dual_step(value: float, loss: float, bound: float, step_size: float) -> float:
    """Return the dual variable after a step of projected ascent, ``max(0, lambda + eta (L_r - epsilon))``.

    Args:
        value: lambda.
        loss: retain loss, in nats per token.
        bound: epsilon.
        step_size: eta.
    """
    return max(0.0, value + step_size * (loss - bound))


@dataclass(eq=False)
class Dual(MovingWeight):
    """The dual variable of the bound on the retain loss."""

    bound: float
    step_size: float
    warmup_epochs: int

    def update(self, value: float, epoch: int) -> None:
        """Step, once the warm-up is over."""
        if epoch >= self.warmup_epochs:
            self.value = dual_step(self.value, value, self.bound, self.step_size)


class PDU(ObjectiveMethod):
    """min_theta max_lambda gamma mean_t pdu_loss(z_t) + lambda (L_retain - epsilon), both means over answer tokens.

    After every optimiser step ``lambda <- max(0, lambda + eta (L_retain - epsilon))``, with the retain loss of that
    step's examples; it stands still in the first epochs. The log has it as ``weight/retain_nll``. Checkpoints keep it.

    ``parity=True`` does as the reference: forget rows by an unshifted mask (``pdu_reference_loss``), and a step of
    lambda after every micro-batch, so that accumulating over k of them multiplies eta by k. Its mode that updates once
    per epoch on a second pass over the data is not offered.

    Source: Entesari et al. 2025, arXiv 2506.05314; ``PDU`` of open-unlearning.
    """

    id = "pdu"
    title = "flatten the predictions on the forget set, with the retain loss held under a bound"
    paper = "Entesari et al. 2025, Constrained Entropic Unlearning: A Primal-Dual Framework, arXiv:2506.05314"
    Config: ClassVar[type[MethodConfig]] = PDUConfig

    def objective(self) -> Objective:
        """The margin term, and the retain term whose weight is the dual variable."""
        config = self.config

        def values(forget: Statistics) -> Tensor:
            return pdu_loss(forget.logits)

        forget = Term(
            "pdu",
            ("forget",),
            values,
            "row_mean" if config.parity else "token_mean",
            config.forget_weight,
            positions="label" if config.parity else "answer",
        )
        (retain,) = config.retain_terms()
        dual = Dual(
            config.retain_weight,
            bound=config.bound,
            step_size=config.dual_step_size,
            warmup_epochs=config.dual_warmup_epochs,
            per="micro_batch" if config.parity else "step",
        )
        return Objective((forget, replace(retain, weight=dual)))
