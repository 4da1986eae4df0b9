"""Exact memorisation: the share of answer tokens that are the model's first guess, given all before them.

Source: Tirumala et al. 2022, Memorization Without Overfitting; as scored by open-unlearning.
"""

from __future__ import annotations

import math

from pydantic import Field

from expunge.audits.base import Audit, AuditConfig, Finding, Scalar
from expunge.audits.intervals import SHARE
from expunge.audits.observations import Observations
from expunge.audits.values import Values
from expunge.tasks.tokens import TokenScores

ROLES = ("forget", "retain", "holdout")


def exact_memorization(scores: TokenScores, parity: bool = False) -> float:
    """Return the mean of "the true token is the most probable one" over the answer's tokens.

    Args:
        scores: token scores of the answer; the appended end of sequence is not counted.
        parity: as open-unlearning counts: the last label is dropped whether or not it is the end of sequence.

    Returns:
        A share in [0, 1]; NaN for an answer without tokens.
    """
    hit = scores.hit[: len(scores) - 1] if parity else scores.hit[scores.content]
    return float(hit.mean()) if len(hit) else float("nan")


class ExactMemorization(Audit):
    """Mean exact memorisation per example set."""

    id = "exact_memorization"
    title = "How many tokens of the answers are the model's first guess?"
    reads = tuple((role, "answer") for role in ROLES)
    paper = "Tirumala et al. 2022, Memorization Without Overfitting (arXiv:2205.10770)"

    class Config(AuditConfig):
        """Settings of the exact-memorisation audit."""

        parity: bool = Field(False, description="drop the last label always, as open-unlearning does")

    def run(self, seen: Observations) -> Finding:
        values, roles = Values(seen), [role for role in ROLES if seen.rows(role)]
        for model in seen.models:
            for role in roles:
                found = {i: exact_memorization(s, self.config.parity) for i, s in seen.scores(model, role).items()}
                share = {i: value for i, value in found.items() if not math.isnan(value)}  # no token, no value
                values.add(model, role, "exact_memorization", share)
        name = "exact_memorization"
        return Finding(
            self.id,
            scalars=[
                Scalar(f"{role}_{name}", f"Exact memorisation, {role}", "share", "high" if role == "forget" else "none")
                for role in roles
            ],
            estimates={
                model: {f"{role}_{name}": values.mean(model, role, name, SHARE) for role in roles}
                for model in seen.models
            },
            per_example=values.per_example(),
            attempted={"parity": self.config.parity, "examples": {role: len(seen.rows(role)) for role in roles}},
        )
