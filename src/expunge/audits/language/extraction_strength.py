"""Extraction strength: how much of an answer follows by itself from its beginning.

Per-example statistic for the verdict: ``extraction_strength`` on the forget set: verbatim recall under the true
beginning, which an average likelihood can miss. Exact memorisation is nearly the same thing and is left out.

Source: Carlini et al. 2021, Extracting Training Data from Large Language Models; as scored by open-unlearning.
"""

from __future__ import annotations

import math

import numpy as np
from pydantic import Field

from expunge.audits.base import Audit, AuditConfig, Estimate, Finding, Scalar
from expunge.audits.intervals import SHARE
from expunge.audits.observations import Observations
from expunge.audits.values import Values
from expunge.tasks.tokens import TokenScores

ROLES = ("forget", "retain", "holdout")


def extraction_strength(scores: TokenScores, parity: bool = False) -> float:
    """Return ``1 - k/m``, k the shortest prefix after which every token of the answer is the model's first guess.

    Args:
        scores: token scores of the answer; m is its number of tokens without the appended end of sequence.
        parity: as open-unlearning counts: the last label is always dropped, and where not even the last token is
            guessed the result is 1/m instead of 0; an answer of one label counts as 0.

    Returns:
        A number in [0, 1]; NaN for an answer without tokens, unless in parity.
    """
    hit = scores.hit[: len(scores) - 1] if parity else scores.hit[scores.content]
    m = len(hit)
    if m == 0:
        return 0.0 if parity else float("nan")
    misses = np.flatnonzero(~hit)
    k = int(misses[-1]) + 1 if misses.size else 0
    if parity:
        k = min(k, m - 1)
    return (m - k) / m


class ExtractionStrength(Audit):
    """Mean extraction strength per example set."""

    id = "extraction_strength"
    title = "How much of an answer can be drawn out with its beginning?"
    reads = tuple((role, "answer") for role in ROLES)
    paper = "Carlini et al. 2021, Extracting Training Data from Large Language Models (arXiv:2012.07805)"

    class Config(AuditConfig):
        """Settings of the extraction-strength audit."""

        parity: bool = Field(False, description="count as open-unlearning does, with its floor of 1/m")

    def run(self, seen: Observations) -> Finding:
        values, roles = Values(seen), [role for role in ROLES if seen.rows(role)]
        for model in seen.models:
            for role in roles:
                found = {i: extraction_strength(s, self.config.parity) for i, s in seen.scores(model, role).items()}
                strength = {i: value for i, value in found.items() if not math.isnan(value)}  # no token, no value
                values.add(model, role, "extraction_strength", strength)
        name = "extraction_strength"
        estimates: dict[str, dict[str, Estimate]] = {
            model: {f"{role}_{name}": values.mean(model, role, name, SHARE) for role in roles} for model in seen.models
        }
        return Finding(
            self.id,
            scalars=[
                Scalar(
                    f"{role}_{name}", f"Extraction strength, {role}", "share", "high" if role == "forget" else "none"
                )
                for role in roles
            ],
            estimates=estimates,
            per_example=values.per_example(),
            evidence=values.evidence(name, "forget", "high"),
            attempted={"parity": self.config.parity, "examples": {role: len(seen.rows(role)) for role in roles}},
        )
