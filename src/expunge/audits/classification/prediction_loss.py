"""Prediction loss: how well a classifier or regressor still predicts the examples of each set.

Per-example statistic for the verdict, on the forget and the retain set: ``confidence``, the probability of the true
class, or ``prediction_loss``, the squared error of a regressor on the scale on which it learns. Of a classifier, the
confidence and not its logarithm, although one is monotone in the other: how unlikely a class is that was never seen
differs by many nats from seed to seed, and next to that nothing else could be told.

Source: Yeom et al. 2018, Privacy Risk in Machine Learning (arXiv:1709.01604).
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np

from expunge.audits.base import Audit, Estimate, Evidence, Finding, Plot, Scalar
from expunge.audits.observations import Observations
from expunge.audits.values import Values
from expunge.tasks.kinds import PREDICTORS

ROLES = ("forget", "retain", "holdout")


class PredictionLoss(Audit):
    """Mean loss, and accuracy or absolute error, per example set."""

    id = "prediction_loss"
    title = "How well does the model still predict the examples?"
    tasks: ClassVar[tuple[str, ...]] = PREDICTORS
    reads = tuple((role, "prediction") for role in ROLES)
    paper = "Yeom et al. 2018, Privacy Risk in Machine Learning (arXiv:1709.01604)"

    def run(self, seen: Observations) -> Finding:
        values, roles = Values(seen), [role for role in ROLES if role in seen.examples.roles]
        numbers = next(iter(seen.models.values())).kind == "regressor"
        second = "absolute_error" if numbers else "accuracy"
        scalars: list[Scalar] = []
        estimates: dict[str, dict[str, Estimate]] = {model: {} for model in seen.models}
        for role in roles:
            knowing = role == "forget"
            scalars += [
                Scalar(f"{role}_loss", f"Loss, {role}", "squared error" if numbers else "nats", _low(knowing)),
                Scalar(f"{role}_absolute_error", f"Absolute error, {role}", "unit of the data", _low(knowing))
                if numbers
                else Scalar(f"{role}_accuracy", f"Accuracy, {role}", "share", "high" if knowing else "none"),
            ]
            for model in seen.models:
                found = seen.predictions(model, role)
                values.add(model, role, "prediction_loss", found.by_id(found.nll))
                if not numbers:
                    values.add(model, role, "confidence", found.by_id(np.exp(-found.nll)))
                values.add(model, role, second, found.by_id(found.absolute_error if numbers else found.correct))
                estimates[model][f"{role}_loss"] = values.mean(model, role, "prediction_loss")
                estimates[model][f"{role}_{second}"] = values.mean(model, role, second)
        plot = Plot(
            "distribution",
            "How wrong each model is about the examples to be forgotten",
            "squared error" if numbers else "cross-entropy (nats)",
            "examples",
            {model: list(values.get(model, "forget", "prediction_loss").values()) for model in seen.models},
        )
        return Finding(
            self.id,
            scalars=scalars,
            estimates=estimates,
            per_example=values.per_example(),
            evidence=_evidence(values, numbers),
            plots=[plot],
            attempted={"examples": {role: len(seen.examples.dataset(role)) for role in roles}},
        )


def _evidence(values: Values, numbers: bool) -> list[Evidence]:
    if numbers:
        return [
            *values.evidence("prediction_loss", "forget", "low"),
            *values.evidence("prediction_loss", "retain", "low"),
        ]
    return [*values.evidence("confidence", "forget", "high"), *values.evidence("confidence", "retain", "high")]


def _low(knowing: bool) -> Literal["low", "none"]:
    return "low" if knowing else "none"
