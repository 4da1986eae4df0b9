"""Class confusion: which classes do examples go to, before and after?

A class that is forgotten goes somewhere. A model that never saw it spreads its examples over the classes that look like
it; one that was taught a wrong answer puts them in one place, which tells that something was forgotten (the Streisand
effect). On what is kept, predictions that changed show damage that accuracies hide.
"""

from __future__ import annotations

from collections import Counter
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from expunge.audits.base import Audit, AuditConfig, Estimate, Finding, Scalar, Table
from expunge.audits.intervals import statistic_interval
from expunge.audits.observations import Observations
from expunge.audits.values import Values
from expunge.tasks.kinds import CLASSIFIERS
from expunge.tasks.predictions import Predictions

SETS = {"forget": "the forget set", "retain": "what is kept", "holdout": "the holdout set"}


def confusion(predictions: Predictions) -> NDArray[np.int64]:
    """Return (C, C) how many examples of each class (row) are predicted as each class (column)."""
    size = len(predictions.classes)
    flat = np.asarray(predictions.targets, dtype=np.int64) * size + predictions.predicted
    return np.bincount(flat, minlength=size * size).reshape(size, size)


def concentration(predicted: NDArray[np.int64]) -> float:
    """Return the share of predictions that the most frequent class has: 1 if all are the same.

    Args:
        predicted: (n,) classes, at least one.
    """
    return float(np.bincount(predicted.astype(np.int64)).max() / len(predicted))


class ClassConfusion(Audit):
    """Where each model puts the examples of each set, and how many predictions differ from the original's."""

    id = "class_confusion"
    title = "Which classes do the examples go to, before and after?"
    tasks: ClassVar[tuple[str, ...]] = CLASSIFIERS
    reads = tuple((role, "prediction") for role in SETS)
    paper = "Golatkar et al. 2020, Eternal Sunshine of the Spotless Net (arXiv:1911.04933)"

    class Config(AuditConfig):
        """Settings of the class confusion."""

        listed: int = Field(15, ge=0, description="how many pairs of true and predicted class are listed per set")

    def run(self, seen: Observations) -> Finding:
        values, roles = Values(seen), [role for role in SETS if role in seen.examples.roles]
        estimates: dict[str, dict[str, Estimate]] = {}
        for model in seen.models:
            wrong = seen.predictions(model, "forget")
            away = wrong.predicted[~wrong.correct]
            estimates[model] = {
                "wrong_in_one_class": statistic_interval(
                    {"predicted": away.astype(float).tolist()},
                    lambda parts: concentration(parts["predicted"].astype(np.int64)),
                    seed=seen.seed,
                    resamples=500,
                )
                if len(away)
                else Estimate(None, note="the model is right about all of them")
            }
            for role in roles:
                if "original" not in seen.models:
                    estimates[model][f"{role}_changed"] = Estimate(None, note="the original model was not given")
                    continue
                found, before = seen.predictions(model, role), seen.predictions("original", role)
                values.add(model, role, "changed", found.by_id(found.predicted != before.predicted))
                estimates[model][f"{role}_changed"] = values.mean(model, role, "changed")
        return Finding(
            self.id,
            scalars=[
                Scalar("wrong_in_one_class", "Share of the wrong predictions on the forget set that the most frequent "
                       "class has", "share"),
                *(Scalar(f"{role}_changed", f"Predictions on {SETS[role]} that differ from the original's", "share",
                         "low" if role == "forget" else "none") for role in roles),
            ],
            estimates=estimates,
            per_example=values.per_example(),
            tables=[self._table(seen, role) for role in roles],
            attempted={"examples": {role: len(seen.examples.dataset(role)) for role in roles}},
        )  # fmt: skip

    def _table(self, seen: Observations, role: str) -> Table:
        """The confusions that are most frequent in any model, as shares of the true class."""
        counted: Counter[tuple[int, int]] = Counter()
        shares = {}
        for model in seen.models:
            counts = confusion(seen.predictions(model, role))
            shares[model] = counts / np.maximum(1, counts.sum(1, keepdims=True))
            for true, predicted in zip(*np.nonzero(counts), strict=True):
                pair = (int(true), int(predicted))
                if true != predicted:
                    counted[pair] = max(counted[pair], int(counts[pair]))
        names = seen.predictions("unlearned", role).classes
        most = sorted(counted.items(), key=lambda item: (-item[1], item[0]))[: self.config.listed]
        rows = [
            (names[true], names[predicted], *(round(float(shares[m][true, predicted]), 3) for m in seen.models))
            for (true, predicted), _ in most
        ]
        title = f"Most frequent confusions on {SETS[role]}, share of the true class"
        return Table(title, ("true", "predicted", *seen.models), rows)
