"""Corrected accuracy: is the damage that corrupted training data did undone, and was nothing else lost?

``Acc_corr`` is the accuracy on the affected domain by clean labels: test images with the trigger for a poison, test
images of the confused classes for a label confusion. ``Acc_retain`` is the accuracy on the rest of the test set: clean
images, or the other classes. For a poison, examples whose true class is the attacker's are left out of the affected
domain, for being right on them proves nothing, and ``attack_success`` is the share of the others that goes to the
attacker's class. The gold standard is a model trained without *all* corrupted examples, also those nobody identified.

Source: Goel et al. 2024, Corrective Machine Unlearning (arXiv:2402.14015), section 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from datasets import Dataset
from pydantic import Field

from expunge.audits.base import Audit, AuditConfig, Estimate, Finding, Scalar
from expunge.audits.intervals import mean_interval
from expunge.audits.observations import Observations
from expunge.audits.population_attack import in_percent
from expunge.audits.unseen import NO_TEST, unseen_sets
from expunge.data.corruptions import CLEAN_LABEL, triggered
from expunge.tasks.kinds import CLASSIFIERS
from expunge.tasks.outcomes import LABEL
from expunge.tasks.predictions import Predictions


@dataclass(frozen=True)
class Corruption:
    """What was done to the training set, as far as the identified examples show it.

    Attributes:
        kind: "poison" (all were given one label) or "confusion" (labels of several classes were swapped).
        labels: the labels that they were given.
        clean: their true classes, as far as they are known.
    """

    kind: str
    labels: frozenset[str]
    clean: frozenset[str]


def corruption_of(forget: Dataset) -> Corruption:
    """Read from the identified examples what was done: one label for many is a poison, otherwise a confusion."""
    labels = frozenset(map(str, forget[LABEL]))
    clean = frozenset(map(str, forget[CLEAN_LABEL])) if CLEAN_LABEL in forget.column_names else frozenset()
    # A swap gives each class the label of another of them; of few identified examples one direction may be all.
    swapped = len(labels) > 1 or (len(clean) == 1 and not labels & clean)
    return Corruption("confusion" if swapped else "poison", labels, clean)


def attack_success(predictions: Predictions, target: int) -> float:
    """Return the share of examples of other classes that are predicted as the attacker's class, in percent.

    Args:
        predictions: of triggered examples, with their clean labels.
        target: index of the attacker's class.

    Raises:
        ValueError: no example of another class.
    """
    others = np.asarray(predictions.targets) != target
    if not others.any():
        raise ValueError("there is no example of another class")
    return 100.0 * float((predictions.predicted[others] == target).mean())


def corrected(predictions: Predictions, left_out: int | None = None) -> float:
    """Return the accuracy by clean labels in percent.

    Args:
        predictions: of the affected domain.
        left_out: class whose examples do not count: the attacker's, for a poison.

    Raises:
        ValueError: nothing is left.
    """
    counted = np.ones(len(predictions), dtype=bool) if left_out is None else predictions.targets != left_out
    if not counted.any():
        raise ValueError("there is no example of the affected domain")
    return 100.0 * float(predictions.correct[counted].mean())


class CorrectedAccuracy(Audit):
    """Accuracy on the affected domain and on the rest, for requests to undo corrupted examples."""

    id = "corrected_accuracy"
    title = "Is the damage that corrupted examples did undone?"
    tasks: ClassVar[tuple[str, ...]] = CLASSIFIERS
    reads = (("forget", "prediction"), ("holdout", "prediction"))
    default = False
    scenarios = ("corrupted",)
    paper = "Goel et al. 2024, Corrective Machine Unlearning (arXiv:2402.14015)"

    class Config(AuditConfig):
        """Settings of the corrected accuracy."""

        kind: str = Field("auto", pattern="^(auto|poison|confusion)$", description="poison, confusion, or auto")
        patch: int | None = Field(
            None, ge=1, description="edge in pixels of the poison's patch, put on test images to trigger it"
        )

    def run(self, seen: Observations) -> Finding:
        if seen.request.scenario != "corrupted":
            return Finding(self.id, "no data", note="the request is not to undo corrupted examples")
        found = corruption_of(seen.request.forget)
        guessed = "poison" if self.config.patch is not None else found.kind
        kind = guessed if self.config.kind == "auto" else self.config.kind
        if unseen_sets(seen, "unlearned")[0] is None:
            return Finding(self.id, "no data", note=NO_TEST)
        if kind == "poison" and self.config.patch is None:
            note = "a poison is triggered by what was put on the images; give patch, the edge of the patch in pixels"
            return Finding(self.id, "no data", note=note)
        poison = kind == "poison"
        estimates = {
            model: self._poison(seen, model, found) if poison else self._confusion(seen, model, found)
            for model in seen.models
        }
        affected = "test images with the trigger" if poison else "test examples of the confused classes"
        scalars = [
            Scalar("acc_corr", f"Acc_corr: accuracy on {affected}", "%", "low", 2),
            Scalar("acc_retain", "Acc_retain: accuracy on the rest of the test set", "%", digits=2),
            *([Scalar("attack_success", "Triggered images that go to the attacker's class", "%", "high", 2)] * poison),
        ]
        tried = {"kind": kind, "labels": sorted(found.labels), "known fraction": seen.request.known_fraction}
        return Finding(self.id, scalars=scalars, estimates=estimates, attempted=tried)

    def _poison(self, seen: Observations, model: str, found: Corruption) -> dict[str, Estimate]:
        task = seen.models[model]
        if "triggered" not in seen.examples.roles:
            clean = seen.examples.dataset("test" if "test" in seen.examples.roles else "holdout")
            seen.examples.add("triggered", triggered(clean, self.config.patch))
        shown, (test, _) = seen.predictions(model, "triggered"), unseen_sets(seen, model)
        target = [index for name in found.labels if (index := task.outcome.index(_typed(name, task))) is not None]
        others = shown.take(np.flatnonzero(~np.isin(shown.targets, target)))
        assert test is not None
        return {
            "acc_corr": _share(others.correct, seen),
            "acc_retain": _share(test.correct, seen),
            "attack_success": _share(np.isin(others.predicted, target), seen),
        }

    def _confusion(self, seen: Observations, model: str, found: Corruption) -> dict[str, Estimate]:
        task, (test, _) = seen.models[model], unseen_sets(seen, model)
        assert test is not None
        confused = [task.outcome.index(_typed(name, task)) for name in found.labels | found.clean]
        inside = np.isin(test.targets, [index for index in confused if index is not None])
        return {"acc_corr": _share(test.correct[inside], seen), "acc_retain": _share(test.correct[~inside], seen)}


def _typed(name: str, task: object) -> str | int:
    """A class written as a number where the model's classes have other names."""
    names = task.outcome.names  # type: ignore[attr-defined]
    return int(name) if name not in names and name.isdigit() else name


def _share(correct: np.ndarray, seen: Observations) -> Estimate:
    if not len(correct):
        return Estimate(None, note="no such test examples")
    return in_percent(mean_interval(correct.astype(float), seed=seen.seed))
