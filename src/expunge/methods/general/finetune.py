"""Fine-tuning on the retain set alone, hoping that the rest fades."""

from __future__ import annotations

from typing import ClassVar

from expunge.methods.base import ObjectiveMethod
from expunge.tasks.kinds import KINDS
from expunge.training.objective import Objective, Term, nll


class Finetune(ObjectiveMethod):
    """L = CE(retain), averaged over the answer tokens of the step; an epoch is one pass over the retain set.

    The baseline of catastrophic forgetting: what is not rehearsed may fade.

    Source: Golatkar et al. 2020 (arXiv 1911.04933).
    """

    id = "finetune"
    title = "train on the retain set only"
    tasks: ClassVar[tuple[str, ...]] = KINDS
    needs: ClassVar[tuple[str, ...]] = ("retain",)
    paper = "Golatkar et al. 2020, Eternal Sunshine of the Spotless Net, arXiv:1911.04933"

    def objective(self) -> Objective:
        """CE(retain), token mean."""
        return Objective((Term("retain_nll", ("retain",), nll, "token_mean"),), anchor="retain")

    def required(self) -> tuple[str, ...]:
        """The retain set."""
        return ("retain",)
