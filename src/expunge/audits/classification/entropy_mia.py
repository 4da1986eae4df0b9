"""Entropy attack of Bad Teacher and SSD: the share of the forget set called *members* by a regression on entropy.

A logistic regression with balanced classes is trained on the entropy of the audited model's predictions, kept examples
against test examples. The direction is opposite to MIA-efficacy: high means that the forget set looks trained on. Here
too, closest to the oracle is best.

Sources: Chundawat et al. 2023, Can Bad Teaching Induce Forgetting? (arXiv:2205.08096), with an SVC; Foster et al. 2024,
SSD (arXiv:2308.07707), whose regression this is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from expunge.audits.population_attack import PopulationAttack
from expunge.audits.prediction_features import entropy
from expunge.tasks.predictions import Predictions

Array = NDArray[np.float64]


def regression_members(members: Array, others: Array, asked: Array) -> NDArray[np.bool_]:
    """Train a balanced logistic regression on one number per example and say which it calls members.

    Args:
        members, others, asked: (n,) numbers.

    Returns:
        (len(asked),).

    Raises:
        ValueError: one side is empty.
    """
    from sklearn.linear_model import LogisticRegression

    if not len(members) or not len(others):
        raise ValueError("the attack needs examples of both kinds to learn from")
    known = np.concatenate([np.ones(len(members)), np.zeros(len(others))])
    attack = LogisticRegression(class_weight="balanced").fit(np.concatenate([members, others])[:, None], known)
    return np.asarray(attack.predict(asked[:, None]) > 0.5)


class EntropyMia(PopulationAttack):
    """Membership by a logistic regression on the entropy of predictions."""

    id = "entropy_mia"
    title = "What share of the forget set does an attack on entropy take for examples the model was trained on?"
    reports = "member"
    attacks: ClassVar[Mapping[str, str]] = {"entropy": "entropy"}
    label = "Entropy attack"
    default = False
    paper = "Foster et al. 2024, Fast Machine Unlearning Without Retraining (SSD), arXiv:2308.07707"

    def called(
        self, members: Predictions, others: Predictions, asked: Predictions, names: Sequence[str]
    ) -> Mapping[str, NDArray[np.bool_]]:
        parts = (entropy(part.probabilities) for part in (members, others, asked))
        return dict.fromkeys(names, regression_members(*parts))
