"""Activation distance: how far the model's probabilities are from those of the model that never saw the data.

``mean_x || softmax f_u(x) - softmax f_r(x) ||_2`` on the forget set, what is kept and the holdout set; averaged over
the oracles. Two oracles differ too: an oracle's own number, against the others, is the level that is as good as none.

Source: Golatkar et al. 2021, Mixed-Privacy Forgetting (arXiv:2012.13431); Chundawat et al. 2023 (arXiv:2205.08096).
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from expunge.audits.base import Audit, Estimate, Finding, Scalar
from expunge.audits.observations import Observations
from expunge.audits.values import Values
from expunge.tasks.kinds import CLASSIFIERS

Array = NDArray[np.float64]
SETS = {"forget": "the forget set", "retain": "what is kept", "holdout": "the holdout set"}


def activation_distance(p: Array, q: Array) -> Array:
    """Return the Euclidean distance of (n, C) probabilities, (n,), between 0 and the square root of 2."""
    return np.asarray(np.sqrt(np.square(p - q).sum(-1)))


class ActivationDistance(Audit):
    """Distance of predicted probabilities from the oracles', per example set."""

    id = "activation_distance"
    title = "How far are the model's probabilities from those of a model that never saw the data?"
    family = "parametric"
    tasks: ClassVar[tuple[str, ...]] = CLASSIFIERS
    needs = ("oracle",)
    reads = tuple((role, "prediction") for role in SETS)
    paper = "Golatkar et al. 2021, Mixed-Privacy Forgetting in Deep Networks (arXiv:2012.13431)"

    def run(self, seen: Observations) -> Finding:
        values, roles = Values(seen), [role for role in SETS if role in seen.examples.roles]
        for model in seen.models:
            others = [name for name in seen.oracles if seen.models[name] is not seen.models[model]]
            for role in roles if others else ():
                found = seen.predictions(model, role)
                each = [
                    activation_distance(found.probabilities, seen.predictions(other, role).probabilities)
                    for other in others
                ]
                values.add(model, role, "activation_distance", found.by_id(np.mean(each, axis=0)))

        def mean(model: str, role: str) -> Estimate:
            if not values.get(model, role, "activation_distance"):
                return Estimate(None, note="is the only oracle: nothing to compare with")
            return values.mean(model, role, "activation_distance")

        return Finding(
            self.id,
            scalars=[Scalar(f"{role}_distance", f"Distance on {SETS[role]}", "L2 of probabilities") for role in roles],
            estimates={model: {f"{role}_distance": mean(model, role) for role in roles} for model in seen.models},
            per_example=values.per_example(),
            attempted={"oracles": len(seen.oracles)},
        )
