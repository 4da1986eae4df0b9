from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from expunge.audits.classification.svc_mia import SvcMia, mia_efficacy, svc_members
from expunge.audits.observations import Observations
from expunge.audits.prediction_features import FEATURES
from expunge.audits.suite import run_one
from expunge.requests.request import DeletionRequest
from expunge.tasks.predictions import Predictions


def predicted(confidence: np.ndarray, start: int = 0) -> Predictions:
    """Examples of class 0 of two, with these confidences."""
    ids = [f"{start + k:04}" for k in range(len(confidence))]
    logits = np.stack([np.log(confidence), np.log1p(-confidence)], axis=1)
    return Predictions(ids, logits, np.zeros(len(ids), dtype=np.int64), classes=("a", "b"))


def test_the_attack_separates_what_is_apart() -> None:
    luck = np.random.default_rng(0)
    known, new = luck.uniform(0.9, 0.99, (60, 1)), luck.uniform(0.3, 0.5, (60, 1))
    assert svc_members(known, new, np.array([[0.95], [0.4]])).tolist() == [True, False]
    with pytest.raises(ValueError, match="both kinds"):
        svc_members(known, new[:0], known)


def test_efficacy_is_the_share_called_non_members() -> None:
    luck = np.random.default_rng(1)
    retain, test = predicted(luck.uniform(0.9, 0.99, 80)), predicted(luck.uniform(0.3, 0.5, 60), 1000)
    forget = predicted(np.array([0.95, 0.96, 0.4, 0.41, 0.39]), 2000)
    assert mia_efficacy(retain, test, forget) == pytest.approx(60.0)
    assert mia_efficacy(retain, test, predicted(np.full(4, 0.95), 2000)) == 0.0
    assert mia_efficacy(retain, test, forget, most=20, seed=3) == pytest.approx(60.0)


def test_the_audit_tells_a_model_that_knows(sure_and_unsure: tuple[dict[str, Any], DeletionRequest]) -> None:
    models, request = sure_and_unsure
    found = run_one(SvcMia(), Observations(models, request))
    assert {s.name for s in found.scalars} == {*FEATURES, "attack_accuracy"}
    assert found.estimates["unlearned"]["confidence"].value > 90
    assert found.estimates["original"]["confidence"].value < 10
    assert found.estimates["original"]["attack_accuracy"].value > 90
    assert found.estimates["original"]["confidence"].high < 30
    assert found.evidence == ()


def test_nothing_to_learn_from_is_no_data(guesser: Callable, make_labelled: Callable) -> None:
    forget, retain = make_labelled("aaa"), make_labelled("bbbbbb", 100)
    model = guesser(dict.fromkeys([*forget["id"], *retain["id"]], (1.0, 0.0, 0.0)))
    found = run_one(SvcMia(), Observations({"unlearned": model}, DeletionRequest(forget, retain)))
    assert found.status == "no data"
    assert not found.estimates
