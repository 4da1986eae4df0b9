"""Truth ratio: how likely wrong answers are against a paraphrase of the true one.

Per-example statistic for the verdict: ``log_truth_ratio`` on the forget set. A model that knows finds the wrong
answers less likely, whatever it has learnt to say instead.

Source: Maini et al. 2024, TOFU, section 2.2.2. The paper averages the wrong answers' probabilities (arithmetic mean);
its forget-quality code and open-unlearning average their losses (geometric mean), which is the default here.
Open-unlearning adds 1e-10 to the denominator. Where a model was pushed so far that no answer has that much probability
per token, its ratio is next to 0 whatever the answers are; ``parity`` gives it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from pydantic import Field

from expunge.audits.base import Audit, AuditConfig, Estimate, Finding, Plot, Scalar
from expunge.audits.intervals import SHARE
from expunge.audits.observations import Observations
from expunge.audits.values import Values
from expunge.tasks.tokens import TokenScores

Mean = Literal["geometric", "arithmetic"]
Correct = Literal["auto", "paraphrased_answer", "answer"]
ROLES = ("forget", "retain", "holdout")
# What open-unlearning adds to the probability of the correct answer.
ADDED = 1e-10


def log_truth_ratio(
    correct_nll: float, wrong_nll: Sequence[float], mean: Mean = "geometric", parity: bool = False
) -> float:
    """Return ``log R``, ``R = mean_j p(wrong_j) / p(correct)``, p the length-normalised probability ``exp(-NLL)``.

    Args:
        correct_nll: NLL per token of the correct answer, in nats.
        wrong_nll: NLLs per token of the wrong answers, at least one.
        mean: of the wrong probabilities; "geometric" averages the NLLs.
        parity: add 1e-10 to the denominator, as open-unlearning does.

    Raises:
        ValueError: no wrong answer.
    """
    if not wrong_nll:
        raise ValueError("a truth ratio needs at least one wrong answer")
    if parity:
        correct_nll = -float(np.logaddexp(-correct_nll, math.log(ADDED)))
    if mean == "geometric":
        return correct_nll - sum(wrong_nll) / len(wrong_nll)
    least = min(wrong_nll)
    total = sum(math.exp(least - nll) for nll in wrong_nll)
    return correct_nll - least + math.log(total / len(wrong_nll))


def truth_ratio(correct: TokenScores, wrong: Sequence[TokenScores], mean: Mean = "geometric") -> float:
    """Return ``R`` of one example, infinite where it is too large for a float; see ``log_truth_ratio``."""
    log_ratio = log_truth_ratio(correct.nll, [w.nll for w in wrong], mean)
    return math.exp(log_ratio) if log_ratio < 700 else math.inf


def forget_score(log_ratio: float) -> float:
    """Return ``min(R, 1/R)`` in [0, 1]: 1 where wrong and right answers are equally likely."""
    return math.exp(-abs(log_ratio))


def retain_score(log_ratio: float) -> float:
    """Return ``max(0, 1 - R)`` in [0, 1]: 1 where wrong answers are impossible."""
    return max(0.0, -math.expm1(min(log_ratio, 0.0)))


def log_truth_ratios(
    seen: Observations,
    model: str,
    role: str,
    correct: Correct = "auto",
    mean: Mean = "geometric",
    parity: bool = False,
) -> dict[str, float]:
    """Return example id -> log truth ratio of an example set under a model, joined by id.

    Args:
        seen: the observations.
        model: name of the model.
        role: the example set.
        correct: which answer is the correct one; "auto" takes the paraphrase if every example of the set with wrong
            answers has one, else the answer itself, for all of them.
        mean, parity: see ``log_truth_ratio``.

    Returns:
        Values of the examples that have wrong answers and the correct one.
    """
    wrong = seen.scores(model, role, "perturbed_answers")
    right = seen.scores(model, role, correct_field(seen, role, correct)) if wrong else {}
    return {
        i: log_truth_ratio(right[i].nll, [s.nll for s in answers], mean, parity)
        for i, answers in wrong.items()
        if i in right
    }


def correct_field(seen: Observations, role: str, correct: Correct) -> Literal["answer", "paraphrased_answer"]:
    """Return which field holds the correct answer of an example set; see ``log_truth_ratios``."""
    if correct != "auto":
        return correct
    rows = [row for row in seen.rows(role).values() if row.get("perturbed_answers")]
    return "paraphrased_answer" if all(row.get("paraphrased_answer") for row in rows) else "answer"


class TruthRatio(Audit):
    """Truth ratio on the forget set (1 is best for unlearning) and on the retain set (1 is best for knowing)."""

    id = "truth_ratio"
    title = "Does the model still prefer the truth to similar wrong answers?"
    needs = ("perturbed_answers",)
    reads = tuple((role, name) for role in ROLES for name in ("perturbed_answers", "paraphrased_answer", "answer"))
    paper = "Maini et al. 2024, TOFU (arXiv:2401.06121)"

    class Config(AuditConfig):
        """Settings of the truth-ratio audit."""

        mean: Mean = Field(
            "geometric", description="of the wrong answers' probabilities: geometric (code) or arithmetic (paper)"
        )
        correct: Correct = Field(
            "auto", description="which answer is the correct one: auto, paraphrased_answer (as published) or answer"
        )
        parity: bool = Field(False, description="add 1e-10 to the denominator, as open-unlearning does")

    def reading(self, seen: Observations) -> Sequence[tuple[str, str]]:
        return reads_of(seen, self._roles(seen), self.config.correct)

    def _roles(self, seen: Observations) -> list[str]:
        # The holdout set is the control only where no oracle exists, and wrong answers are the dearest to score.
        return [role for role in ROLES if seen.rows(role) and not (role == "holdout" and seen.oracles)]

    def run(self, seen: Observations) -> Finding:
        values = Values(seen)
        for model in seen.models:
            for role in self._roles(seen):
                logs = log_truth_ratios(seen, model, role, self.config.correct, self.config.mean, self.config.parity)
                score = retain_score if role == "retain" else forget_score
                if logs:
                    values.add(model, role, "log_truth_ratio", logs)
                    values.add(model, role, "truth_ratio_score", {i: score(v) for i, v in logs.items()})
        roles = [role for role in self._roles(seen) if values.get("unlearned", role, "log_truth_ratio")]
        if "forget" not in roles:
            return Finding(self.id, "no data", note="no forget example has both wrong answers and the correct one")
        return Finding(
            self.id,
            scalars=[scalar for role in roles for scalar in _scalars(role)],
            estimates={model: _estimates(values, model, roles) for model in seen.models},
            per_example=values.per_example(),
            evidence=values.evidence("log_truth_ratio", "forget", "low"),
            plots=[_plot({model: values.get(model, "forget", "log_truth_ratio") for model in seen.models})],
            attempted={
                "mean": self.config.mean,
                "parity": self.config.parity,
                "correct answer": {role: correct_field(seen, role, self.config.correct) for role in roles},
                "examples": {role: len(values.get("unlearned", role, "log_truth_ratio")) for role in roles},
            },
        )


def reads_of(seen: Observations, roles: Sequence[str], correct: Correct) -> list[tuple[str, str]]:
    """Return what ``log_truth_ratios`` reads for these example sets."""
    asked = [role for role in roles if any(row.get("perturbed_answers") for row in seen.rows(role).values())]
    return [(role, name) for role in asked for name in ("perturbed_answers", correct_field(seen, role, correct))]


def _scalars(role: str) -> list[Scalar]:
    if role == "retain":
        return [Scalar("retain_truth_ratio", "Truth ratio, retain: mean max(0, 1-R)", "share")]
    knowing: Literal["low", "none"] = "low" if role == "forget" else "none"
    return [
        Scalar(f"{role}_truth_ratio", f"Truth ratio, {role}: mean min(R, 1/R)", "share", knowing),
        Scalar(f"{role}_log_truth_ratio", f"Log truth ratio, {role}", "nats/token", knowing),
    ]


def _estimates(values: Values, model: str, roles: Sequence[str]) -> dict[str, Estimate]:
    out = {}
    for role in roles:
        out[f"{role}_truth_ratio"] = values.mean(model, role, "truth_ratio_score", SHARE)
        if role != "retain":
            out[f"{role}_log_truth_ratio"] = values.mean(model, role, "log_truth_ratio")
    return out


def _plot(logs: Mapping[str, Mapping[str, float]]) -> Plot:
    return Plot(
        "distribution",
        "Wrong answers against the truth, on the forget set",
        "log truth ratio (below 0: the truth is preferred)",
        "examples",
        {model: list(values.values()) for model, values in logs.items()},
    )
