"""Terms that several methods share: the retain half of forget-plus-retain objectives."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from expunge.methods.base import MethodConfig
from expunge.tasks.encoding import Positions
from expunge.training.objective import Term, kl_to_reference, nll

RetainLoss = Literal["none", "nll", "kl"]


class RetainConfig(MethodConfig):
    """How retained knowledge is protected while forgetting."""

    retain: RetainLoss = Field(
        "nll", description="loss on the retain set: none, nll, or kl to the model before unlearning"
    )
    retain_weight: float = Field(1.0, ge=0, description="weight of the retain loss (alpha)")
    forget_weight: float = Field(1.0, ge=0, description="weight of the forget loss (gamma)")
    retain_positions: Positions = Field(
        "answer",
        description="rows that the KL retain loss averages over: answer, attended (prompt too) or all (padding too)",
    )
    parity: bool = Field(
        False, description="reproduce the reference: KL averaged over all B x T positions, padding included"
    )

    def retain_terms(self) -> tuple[Term, ...]:
        """The retain term, or nothing."""
        if self.retain == "none":
            return ()
        if self.retain == "nll":
            return (Term("retain_nll", ("retain",), nll, "token_mean", self.retain_weight),)
        positions: Positions = "all" if self.parity else self.retain_positions
        return (
            Term(
                "retain_kl", ("retain",), kl_to_reference, "row_mean", self.retain_weight, reference="rows",
                positions=positions,
            ),
        )  # fmt: skip
