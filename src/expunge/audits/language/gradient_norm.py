"""Gradient norm as a membership score: data that was trained on pulls less on the weights.

One backward pass per example, so it runs only when asked for.

Source: open-unlearning's GradNorm, without its train mode (dropout made its scores random).
"""

from __future__ import annotations

from pydantic import Field

from expunge.audits.base import Audit, AuditConfig, Finding
from expunge.audits.membership_attacks import attack_finding
from expunge.audits.observations import Observations
from expunge.audits.values import Values


class GradientNorm(Audit):
    """Membership of the forget set against the holdout set by ``-mean_W ||d NLL / dW||``."""

    id = "gradient_norm"
    title = "Do the gradients give away that the data was in the training set?"
    family = "membership"
    needs = ("holdout",)
    default = False
    paper = "Nasr et al. 2019, Comprehensive Privacy Analysis of Deep Learning (arXiv:1812.00910)"

    class Config(AuditConfig):
        """Settings of the gradient-norm audit."""

        order: float = Field(2.0, gt=0, description="order p of the norm of each weight tensor's gradient")

    def run(self, seen: Observations) -> Finding:
        values = Values(seen)
        for model in seen.models:
            for role in ("forget", "holdout"):
                norms = seen.gradient_norms(model, role, self.config.order)
                values.add(model, role, "gradient_norm", {i: -norm for i, norm in norms.items()})
        passes = sum(len(seen.rows(role)) for role in ("forget", "holdout"))
        attempted = {"order": self.config.order, "backward passes": passes}
        return attack_finding(self.id, seen, values, "gradient_norm", "Gradient norm", attempted)
