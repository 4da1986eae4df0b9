"""Membership attack on regressors: the share of the forget set that an SVC on the absolute error calls *members*.

The attack of the deep-regression paper: C = 3, a radial kernel with gamma = 1/features, on one feature, the absolute
error in the unit of the data; kept examples against test examples. The direction is opposite to MIA-efficacy: high
means that the forget set looks trained on. Closest to the oracle is best. The paper draws its members from all
training data, the forget set among them, which asks an attack about examples that it may have learned from; here they
are drawn from what is kept.

Source: Tarun et al. 2023, Deep Regression Unlearning (arXiv:2210.08196), section 5.2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from expunge.audits.classification.svc_mia import svc_members
from expunge.audits.population_attack import PopulationAttack
from expunge.tasks.predictions import Predictions


class ErrorMia(PopulationAttack):
    """Membership by an SVC on the absolute error."""

    id = "error_mia"
    title = "What share of the forget set does an attack on errors take for examples the model was trained on?"
    tasks: ClassVar[tuple[str, ...]] = ("regressor",)
    reports = "member"
    attacks: ClassVar[Mapping[str, str]] = {"absolute_error": "absolute error"}
    label = "Error attack"
    paper = "Tarun et al. 2023, Deep Regression Unlearning (arXiv:2210.08196)"

    def called(
        self, members: Predictions, others: Predictions, asked: Predictions, names: Sequence[str]
    ) -> Mapping[str, NDArray[np.bool_]]:
        parts = (part.absolute_error[:, None] for part in (members, others, asked))
        return dict.fromkeys(names, svc_members(*parts))
