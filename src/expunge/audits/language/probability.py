"""Answer probability: the length-normalised likelihood of the true answers.

Per-example statistics for the verdict: ``answer_nll`` on the forget and the retain set. It stands for the whole family
of teacher-forced averages (probability, loss, Min-K); the others are monotone in it or nearly so.

Source: Maini et al. 2024, TOFU: A Task of Fictitious Unlearning for LLMs, section 2.2.2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from expunge.audits.base import Audit, Estimate, Finding, Plot, Scalar
from expunge.audits.intervals import SHARE
from expunge.audits.observations import Observations
from expunge.audits.values import Values
from expunge.tasks.tokens import TokenScores

ROLES = ("forget", "retain", "holdout")


def answer_probability(scores: TokenScores) -> float:
    """Return ``exp(-NLL)``, NLL the mean over the answer's tokens, end of sequence included; in [0, 1]."""
    return scores.probability


def normalised_probability(correct: TokenScores, wrong: Sequence[TokenScores], parity: bool = False) -> float:
    """Return ``p(correct) / (p(correct) + sum_j p(wrong_j))``, each p length-normalised.

    Args:
        correct: scores of the true answer.
        wrong: scores of the wrong answers, at least one.
        parity: add 1e-10 to the denominator, as open-unlearning does: next to 0 where all answers are less probable.

    Source: TOFU's probability for real authors and world facts.
    """
    # Relative to the most probable: all of them can underflow together, or lose digits on the way there.
    least = min([correct.nll, *(answer.nll for answer in wrong)])
    own, *others = (math.exp(least - answer.nll) for answer in (correct, *wrong))
    added = 1e-10 * math.exp(min(least, 700.0)) if parity else 0.0
    return own / (own + sum(others) + added)


class Probability(Audit):
    """Mean probability and NLL of the true answers, per example set."""

    id = "probability"
    title = "How likely does the model find the true answers?"
    reads = (*((role, "answer") for role in ROLES), ("forget", "paraphrased_prompt"))
    paper = "Maini et al. 2024, TOFU (arXiv:2401.06121)"

    def run(self, seen: Observations) -> Finding:
        values, roles = Values(seen), [role for role in ROLES if seen.rows(role)]
        for model in seen.models:
            for role in roles:
                scores = seen.scores(model, role)
                values.add(model, role, "answer_nll", {i: s.nll for i, s in scores.items()})
                values.add(model, role, "probability", {i: answer_probability(s) for i, s in scores.items()})
            rephrased = seen.scores(model, "forget", "paraphrased_prompt")
            values.add(
                model, "forget", "rephrased_probability", {i: answer_probability(s) for i, s in rephrased.items()}
            )
        asked_again = bool(values.get("unlearned", "forget", "rephrased_probability"))
        scalars: list[Scalar] = []
        estimates: dict[str, dict[str, Estimate]] = {model: {} for model in seen.models}
        for role in roles:
            knowing = role == "forget"
            scalars += [
                Scalar(f"{role}_probability", f"Probability, {role}", "probability", "high" if knowing else "none"),
                Scalar(f"{role}_nll", f"NLL, {role}", "nats/token", "low" if knowing else "none"),
            ]
            for model in seen.models:
                estimates[model][f"{role}_probability"] = values.mean(model, role, "probability", SHARE)
                estimates[model][f"{role}_nll"] = values.mean(model, role, "answer_nll")
        if asked_again:
            scalars.append(
                Scalar("forget_rephrased_probability", "Probability, forget, question rephrased", "probability", "high")
            )
            for model in seen.models:
                estimates[model]["forget_rephrased_probability"] = values.mean(
                    model, "forget", "rephrased_probability", SHARE
                )
        evidence = [*values.evidence("answer_nll", "forget", "low"), *values.evidence("answer_nll", "retain", "low")]
        plot = Plot(
            "distribution",
            "How surprised each model is by the answers to be forgotten",
            "answer NLL (nats per token)",
            "examples",
            {model: list(values.get(model, "forget", "answer_nll").values()) for model in seen.models},
        )
        return Finding(
            self.id,
            scalars=scalars,
            estimates=estimates,
            per_example=values.per_example(),
            evidence=evidence,
            plots=[plot],
            attempted={"examples": {role: len(seen.rows(role)) for role in roles}},
        )
