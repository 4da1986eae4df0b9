"""NegGrad+: train on the retain set while raising the loss on the forget set a little."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from expunge.methods.base import MethodConfig, ObjectiveMethod
from expunge.tasks.kinds import KINDS
from expunge.training.objective import Objective, Term, negative_nll, nll


class NegGradPlusConfig(MethodConfig):
    """Hyperparameters of NegGrad+."""

    retain_share: float = Field(
        0.95, ge=0, le=1, description="a: weight of the retain loss; the forget loss is raised with weight 1 - a"
    )


class NegGradPlus(ObjectiveMethod):
    """L = a CE(retain) - (1 - a) CE(forget); an epoch is one pass over the retain set.

    Each retain example meets a partner from the forget set, drawn with replacement. The authors search a between 0.95
    and 0.9999. CE is averaged over the labelled rows of the step.

    Source: Kurmanji et al. 2023, SCRUB (arXiv 2302.09880), section 4; its baseline NegGrad+.
    """

    id = "neg_grad_plus"
    title = "train on the retain set while raising the loss on the forget set a little"
    tasks: ClassVar[tuple[str, ...]] = KINDS
    needs: ClassVar[tuple[str, ...]] = ("retain",)
    paper = "Kurmanji et al. 2023, Towards Unbounded Machine Unlearning, arXiv:2302.09880"
    train_defaults: ClassVar[Mapping[str, Any]] = {"epochs": 5}
    Config: ClassVar[type[MethodConfig]] = NegGradPlusConfig

    def objective(self) -> Objective:
        """a CE(retain) - (1 - a) CE(forget)."""
        share = self.config.retain_share
        retain = Term("retain_nll", ("retain",), nll, "token_mean", share)
        ascent = Term("forget_ascent", ("forget",), negative_nll, "token_mean", 1 - share)
        return Objective((retain, ascent), anchor="retain")

    def required(self) -> tuple[str, ...]:
        """The retain set."""
        return ("retain",)
