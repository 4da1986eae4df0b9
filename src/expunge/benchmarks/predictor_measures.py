"""The numbers of the tables for classifiers and regressors, of one model after one request."""

from __future__ import annotations

import numpy as np
from datasets import Dataset

from expunge.audits.classification.accuracies import accuracy, unlearning_accuracy
from expunge.audits.classification.svc_mia import attack_sides, mia_efficacy, svc_members
from expunge.audits.regression.wasserstein import in_unit, wasserstein
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


def measure_regressor(
    task: Predictor, oracle: Predictor, request: DeletionRequest, test: Dataset, seed: int
) -> dict[str, float]:
    """Return errors and distances in the unit of the data, and the attack's answer in percent.

    Args:
        task: the model to measure.
        oracle: the model retrained without the forget set.
        request: what was forgotten; its holdout set are the test examples like the forget set.
        test: all test examples.
        seed: of the attack's draw.

    Returns:
        ``mae_forget`` and ``mae_retain`` on test examples like the forget set and on the others, ``mae_forgotten`` on
        the forget set itself, ``w1`` between the predictions of both models for the forget set and ``difference``
        their mean absolute difference example by example, ``w1_retain`` on the other test examples, and ``mia``, the
        share of the forget set that an attack on absolute errors calls members.
    """
    assert request.holdout is not None
    forget, retain = (task.observe(task.encode(s)) for s in (request.forget, request.retain))
    kept, like = (task.observe(task.encode(s)) for s in (kept_test(request, test), request.holdout))
    known, known_kept = (oracle.observe(oracle.encode(s)) for s in (request.forget, kept_test(request, test)))
    members, others = attack_sides(retain, kept, seed=seed, most=ATTACK)
    called = svc_members(*(part.absolute_error[:, None] for part in (members, others, forget)))
    return {
        "mae_forget": float(like.absolute_error.mean()),
        "mae_retain": float(kept.absolute_error.mean()),
        "mae_forgotten": float(forget.absolute_error.mean()),
        "w1": wasserstein(in_unit(forget), in_unit(known)),
        "difference": float(np.abs(in_unit(forget) - in_unit(known)).mean()),
        "w1_retain": wasserstein(in_unit(kept), in_unit(known_kept)),
        "mia": 100.0 * float(called.mean()),
    }
