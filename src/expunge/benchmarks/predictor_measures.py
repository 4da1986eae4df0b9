"""The numbers of the tables for classifiers, of one model after one request."""

from __future__ import annotations

from datasets import Dataset

from expunge.audits.classification.accuracies import accuracy, unlearning_accuracy
from expunge.audits.classification.svc_mia import mia_efficacy
from expunge.requests.request import DeletionRequest
from expunge.tasks.predictor import Predictor

# Members and non-members that the attack learns from, each.
ATTACK = 2000


def kept_test(request: DeletionRequest, test: Dataset) -> Dataset:
    """Return the test examples that are not like the forget set: all of them where random examples are forgotten."""
    if request.scenario == "examples" or request.holdout is None:
        return test
    like = set(request.holdout["id"])
    return test.select([i for i, identity in enumerate(test["id"]) if identity not in like])


def measure_classifier(task: Predictor, request: DeletionRequest, test: Dataset, seed: int) -> dict[str, float]:
    """Return UA, RA, TA, MIA-efficacy and, where there are unseen examples like the forget set alone, FA, in percent.

    Args:
        task: the model to measure.
        request: what was forgotten.
        test: all test examples.
        seed: of the attack's draw.
    """
    forget, retain = (task.observe(task.encode(s)) for s in (request.forget, request.retain))
    kept = task.observe(task.encode(kept_test(request, test)))
    found = {
        "ua": unlearning_accuracy(forget.correct),
        "ra": accuracy(retain.correct),
        "ta": accuracy(kept.correct),
        "mia": mia_efficacy(retain, kept, forget, seed=seed, most=ATTACK),
    }
    if request.scenario != "examples" and request.holdout is not None:
        found["fa"] = accuracy(task.observe(task.encode(request.holdout)).correct)
    return found
