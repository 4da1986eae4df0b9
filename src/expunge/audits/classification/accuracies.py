"""The field's accuracies, in percent: UA on the forget set, RA on what is kept, TA on the test set.

``UA = 100 - accuracy(Df)``, ``RA = accuracy(Dr)``, ``TA = accuracy(Dt)``. When a class is forgotten, TA is over the
classes that are kept, and FA is the accuracy on unseen examples of the class. None of them is better for being high or
low: closest to the model that never saw the data is best, and a UA above its UA is a difference, not a gain.

Source: Jia et al. 2023, Model Sparsity Can Simplify Machine Unlearning (arXiv:2304.04934), section 5.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from expunge.audits.base import Audit, AuditConfig, Estimate, Finding, Scalar
from expunge.audits.intervals import mean_interval
from expunge.audits.observations import Observations
from expunge.audits.population_attack import in_percent
from expunge.audits.unseen import NO_TEST, TEST, TestSet, add_test_set, unseen_sets
from expunge.tasks.kinds import CLASSIFIERS
from expunge.tasks.predictions import Predictions

ALIKE = ("class", "group", "range")


def accuracy(correct: NDArray[Any]) -> float:
    """Return the share of right predictions in percent.

    Args:
        correct: (n,) booleans, at least one.

    Raises:
        ValueError: no example; an accuracy of nothing is not 0.
    """
    if not len(correct):
        raise ValueError("there is no example to be right about")
    return 100.0 * float(np.mean(correct))


def unlearning_accuracy(correct_on_forget: NDArray[Any]) -> float:
    """Return UA: 100 minus the accuracy on the forget set, in percent.

    Args:
        correct_on_forget: (n,) booleans, at least one.

    Raises:
        ValueError: no example.
    """
    return 100.0 - accuracy(correct_on_forget)


class Accuracies(Audit):
    """UA, RA and TA, and FA where what is to be forgotten has unseen examples of its own."""

    id = "accuracies"
    title = "How often is each model right about what is forgotten, kept and new?"
    tasks: ClassVar[tuple[str, ...]] = CLASSIFIERS
    reads = tuple((role, "prediction") for role in ("forget", "retain", "holdout", TEST))
    paper = "Jia et al. 2023, Model Sparsity Can Simplify Machine Unlearning (arXiv:2304.04934)"

    class Config(AuditConfig):
        """Settings of the accuracies."""

        test: TestSet = Field(
            None, description="examples that no model saw, of all that is kept; needed when a class is forgotten"
        )

    def prepare(self, seen: Observations) -> None:
        add_test_set(seen, self.config.test)

    def run(self, seen: Observations) -> Finding:
        alike = seen.request.scenario in ALIKE
        scalars = [
            Scalar("ua", "UA: unlearning accuracy (100 - accuracy on the forget set)", "%", "low", 2),
            Scalar("ra", "RA: accuracy on what is kept", "%", digits=2),
            Scalar("ta", "TA: accuracy on the test set", "%", digits=2),
            *([Scalar("fa", "FA: accuracy on unseen examples like those to forget", "%", "high", 2)] * alike),
        ]
        estimates: dict[str, dict[str, Estimate]] = {}
        sizes: dict[str, int] = {}
        for model in seen.models:
            test, like = unseen_sets(seen, model)
            forget = seen.predictions(model, "forget")
            retain = seen.predictions(model, "retain") if "retain" in seen.examples.roles else None
            estimates[model] = {
                "ua": in_percent(seen.mean("forget", forget.by_id(forget.correct)), complement=True),
                "ra": in_percent(seen.mean("retain", retain.by_id(retain.correct)))
                if retain is not None
                else Estimate(None, note="the request has no retain set"),
                "ta": _right(test, seen, NO_TEST),
            }
            if alike:
                estimates[model]["fa"] = _right(like, seen, "no unseen examples like those to forget")
            parts = {"forget": forget, "retain": retain, "test": test, "like the forget set": like}
            sizes = {name: len(part) for name, part in parts.items() if part is not None}
        return Finding(self.id, scalars=scalars, estimates=estimates, attempted={"examples": sizes})


def _right(predictions: Predictions | None, seen: Observations, otherwise: str) -> Estimate:
    if predictions is None:
        return Estimate(None, note=otherwise)
    groups = _groups(seen, predictions.ids)
    return in_percent(mean_interval(predictions.correct.astype(float), groups, seed=seen.seed))


def _groups(seen: Observations, ids: Sequence[str]) -> list[str] | None:
    known = {**seen.groups("holdout"), **seen.groups(TEST)}
    return [known[i] for i in ids] if all(i in known for i in ids) else None
