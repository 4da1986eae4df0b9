"""MIA-efficacy: the share of the forget set that an SVC takes for examples that the model was not trained on.

A support vector classifier is trained on features of the audited model's own predictions, examples that are kept
(members) against test examples (non-members), and asked about the forget set. The number, in percent, is the share
called a non-member. It is to be read beside the retrained model's: in the scenario ``examples`` closest is best, not
highest; when a class is forgotten, a model that is never right about it reaches 100 by that alone. Other papers report
the share called a *member* of a similar attack; that is 100 minus this.

The attack is the field's: C = 3, a radial kernel with gamma = 1/features, features unscaled. What differs by default:
as many members as non-members, drawn by seed; the right modified entropy. ``parity`` gives the released behaviour:
the first examples of the retain set as members, and its modified entropy.

Source: Jia et al. 2023, Model Sparsity Can Simplify Machine Unlearning (arXiv:2304.04934), appendix C.3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from expunge.audits.population_attack import PopulationAttack, attack_sides
from expunge.audits.prediction_features import FEATURES, prediction_features
from expunge.tasks.predictions import Predictions

Array = NDArray[np.float64]
# The feature that papers report.
REPORTED = "confidence"


def svc_members(members: Array, non_members: Array, asked: Array) -> NDArray[np.bool_]:
    """Train the attack and say which of the examples asked about it calls members.

    Args:
        members: (m, k) features of examples that the model was trained on.
        non_members: (n, k) features of examples that it was not trained on.
        asked: (q, k).

    Returns:
        (q,) whether each is called a member.

    Raises:
        ValueError: one side is empty.
    """
    from sklearn.svm import SVC

    if not len(members) or not len(non_members):
        raise ValueError("the attack needs examples of both kinds to learn from")
    known = np.concatenate([np.ones(len(members)), np.zeros(len(non_members))])
    attack = SVC(C=3, gamma="auto", kernel="rbf").fit(np.concatenate([members, non_members]), known)
    return np.asarray(attack.predict(asked) > 0.5)


def mia_efficacy(
    retain: Predictions,
    test: Predictions,
    forget: Predictions,
    feature: str = REPORTED,
    *,
    seed: int = 0,
    parity: bool = False,
    most: int | None = None,
) -> float:
    """Return the share of the forget set that the attack calls non-members, in percent.

    Args:
        retain, test, forget: what one classifier predicts.
        feature: of ``FEATURES``.
        seed: of the draw of members and non-members; without effect under parity.
        parity: the released behaviour, see the module.
        most: examples per side at most; all of the smaller side if None.

    Raises:
        ValueError: an empty set, or under parity fewer retain than test examples (the released code stops there too).
    """
    members, others = attack_sides(retain, test, seed=seed, parity=parity, most=most)
    if not len(forget):
        raise ValueError("there is no example to ask about")
    parts = [prediction_features(part, parity)[feature] for part in (members, others, forget)]
    return 100.0 * float(1 - svc_members(*parts).mean())


class SvcMia(PopulationAttack):
    """MIA-efficacy by an SVC on each of five features; the one on confidence is what papers report."""

    id = "svc_mia"
    title = "What share of the forget set does an attack take for examples the model never saw?"
    reports = "non-member"
    attacks: ClassVar[Mapping[str, str]] = {REPORTED: FEATURES[REPORTED]} | dict(FEATURES)
    label = "MIA-efficacy"
    paper = "Jia et al. 2023, Model Sparsity Can Simplify Machine Unlearning (arXiv:2304.04934)"

    def called(
        self, members: Predictions, others: Predictions, asked: Predictions, names: Sequence[str]
    ) -> Mapping[str, NDArray[np.bool_]]:
        parts = [prediction_features(part, self.config.parity) for part in (members, others, asked)]
        return {name: svc_members(*(part[name] for part in parts)) for name in names}
