"""Threshold attack: a member is what exceeds its class's threshold, one number per feature.

Per class, the threshold is the observed value at which ``(TPR + TNR) / 2`` is highest between kept (members) and test
examples (non-members); an example is called a member from it on. Correctness needs none: right is a member. Of
all probabilities, the largest one counts. A class that has examples on one side only, such as a class that is to be
forgotten, takes the threshold of all classes together; as released (``parity``) it is 0.

Reported, as for the SVC: the share of the forget set called non-members, to be read beside the oracle's.

Source: Song & Mittal 2021, Systematic Evaluation of Privacy Risks of Machine Learning Models (arXiv:2003.10595).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from expunge.audits.population_attack import PopulationAttack
from expunge.audits.prediction_features import FEATURES, prediction_features
from expunge.tasks.predictions import Predictions

Array = NDArray[np.float64]
Labels = NDArray[np.int64]


def best_threshold(members: Array, others: Array, parity: bool = False) -> float:
    """Return the observed value from which on to call a member, so that ``(TPR + TNR) / 2`` is highest.

    Args:
        members, others: (m,) and (n,) values, higher for members.
        parity: as released: of several equally good ones the first in the order given, members first; 0 where one side
            is empty.

    Returns:
        The threshold; of several equally good ones the lowest.

    Raises:
        ValueError: one side is empty.
    """
    if parity:
        if not len(members) or not len(others):
            return 0.0
        observed = np.concatenate([members, others])
        reached = (len(members) - np.searchsorted(np.sort(members), observed)) / len(members)
        below = np.searchsorted(np.sort(others), observed) / len(others)
        return float(observed[np.argmax(0.5 * (reached + below))])
    if not len(members) or not len(others):
        raise ValueError("a threshold needs examples of both kinds")
    values = np.unique(np.concatenate([members, others]))
    # Counts over a common denominator, so that equally good thresholds compare equal.
    found = (len(members) - np.searchsorted(np.sort(members), values)) * len(others)
    spared = np.searchsorted(np.sort(others), values) * len(members)
    return float(values[np.argmax(found + spared)])


def threshold_members(
    members: tuple[Array, Labels], others: tuple[Array, Labels], asked: tuple[Array, Labels], parity: bool = False
) -> NDArray[np.bool_]:
    """Say which examples reach the threshold of their class.

    Args:
        members, others, asked: (n,) values, higher for members, and (n,) classes.
        parity: see ``best_threshold``; a class with examples on one side only has the threshold 0.

    Returns:
        (len(asked),) whether each is called a member.
    """
    if parity:
        called = np.zeros(len(asked[0]), dtype=bool)
        for label in np.unique(asked[1]):
            own = asked[1] == label
            known, unknown = (values[labels == label] for values, labels in (members, others))
            called[own] = asked[0][own] >= best_threshold(known, unknown, parity=True)
        return called
    overall = best_threshold(members[0], others[0])
    called = asked[0] >= overall
    for label in np.unique(asked[1]):
        known, unknown = (values[labels == label] for values, labels in (members, others))
        if len(known) and len(unknown):
            own = asked[1] == label
            called[own] = asked[0][own] >= best_threshold(known, unknown)
    return called


def member_scores(predictions: Predictions) -> dict[str, Array]:
    """Return the five features as (n,) scores that are higher for members; of all probabilities, the largest."""
    found = prediction_features(predictions)
    scores = {name: value.max(-1) for name, value in found.items()}
    return scores | {name: -scores[name] for name in ("entropy", "modified_entropy")}


class ThresholdMia(PopulationAttack):
    """Membership by one threshold per class on each of five features."""

    id = "threshold_mia"
    title = "What share of the forget set falls below its class's threshold of what the model was trained on?"
    reports = "non-member"
    attacks: ClassVar[Mapping[str, str]] = {
        **{name: FEATURES[name] for name in ("confidence", "correctness", "entropy", "modified_entropy")},
        "probability": "largest probability",
    }
    label = "Threshold attack"
    default = False
    paper = "Song & Mittal 2021, Systematic Evaluation of Privacy Risks (arXiv:2003.10595)"

    def called(
        self, members: Predictions, others: Predictions, asked: Predictions, names: Sequence[str]
    ) -> Mapping[str, NDArray[np.bool_]]:
        sides = [(member_scores(part), np.asarray(part.targets)) for part in (members, others, asked)]
        found = {}
        for name in names:
            learn, against, about = ((scores[name], labels) for scores, labels in sides)
            found[name] = threshold_members(learn, against, about, self.config.parity)
        return found | ({"correctness": asked.correct} if "correctness" in names else {})
