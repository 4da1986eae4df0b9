"""Embedding separability: can a linear probe tell the forget set from its features, although the head no longer does?

A logistic regression on what the last linear layer is given, tested on folds that it was not trained on. First
question: forget against unseen examples like it, which is membership as the embedding holds it. Second, where a class
or group is to be forgotten: its examples, seen and unseen, against all others. A head that was changed alone leaves
the second as it was. An oracle's embedding separates too, for features transfer: only what exceeds the oracle's says
something.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from expunge.audits.base import Audit, AuditConfig, Estimate, Finding, Scalar
from expunge.audits.observations import Observations
from expunge.audits.roc import auc_interval
from expunge.audits.unseen import TEST, unseen_sets
from expunge.tasks.kinds import CLASSIFIERS
from expunge.tasks.predictions import Predictions, joined

Array = NDArray[np.float64]
FEW = 4
ALIKE = ("class", "group")


def probe_scores(one: NDArray[Any], other: NDArray[Any], folds: int, seed: int) -> tuple[Array, Array]:
    """Return the log-odds of belonging to the first set by probes that were not trained on the example.

    Args:
        one, other: (n, H) and (m, H) features, at least ``folds`` rows each.
        folds: parts of each set; a probe for each, trained on the rest, features standardised on that.
        seed: of the folds.

    Returns:
        (n,) and (m,), higher for the first set.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    luck = np.random.default_rng(seed)
    parts = [luck.permutation(len(side)) % folds for side in (one, other)]
    scores = [np.zeros(len(one)), np.zeros(len(other))]
    for fold in range(folds):
        learn = [side[part != fold] for side, part in zip((one, other), parts, strict=True)]
        known = np.concatenate([np.ones(len(learn[0])), np.zeros(len(learn[1]))])
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, class_weight="balanced", max_iter=500))
        probe.fit(np.concatenate(learn), known)
        for side, part, score in zip((one, other), parts, scores, strict=True):
            if (part == fold).any():
                score[part == fold] = probe.decision_function(side[part == fold])
    return scores[0], scores[1]


class EmbeddingSeparability(Audit):
    """AUC of linear probes on the features of the last layer."""

    id = "embedding_separability"
    title = "Does the embedding still tell the forget set, whatever the head says?"
    family = "parametric"
    tasks: ClassVar[tuple[str, ...]] = CLASSIFIERS
    reads = tuple((role, "prediction") for role in ("forget", "retain", "holdout", TEST))
    default = False
    paper = "Shen et al. 2024, Label-Agnostic Forgetting (arXiv:2404.00506); Alain & Bengio 2017 (arXiv:1610.01644)"

    class Config(AuditConfig):
        """Settings of the embedding probe."""

        folds: int = Field(5, ge=2, description="parts of the data; each is tested by a probe trained on the others")
        most: int = Field(1000, ge=8, description="examples of each side at most")

    def run(self, seen: Observations) -> Finding:
        alike = seen.request.scenario in ALIKE
        estimates: dict[str, dict[str, Estimate]] = {}
        for model in seen.models:
            test, like = unseen_sets(seen, model)
            forget = seen.predictions(model, "forget")
            if forget.features is None:
                return Finding(self.id, "no data", note=f"'{model}' has no last linear layer whose inputs can be read")
            estimates[model] = {"membership_auc": self._auc(seen, forget, like if alike else test)}
            if alike:
                retain = seen.predictions(model, "retain") if "retain" in seen.examples.roles else None
                ours = [forget, *([like] if like is not None else [])]
                others = [part for part in (retain, test) if part is not None]
                estimates[model]["class_auc"] = self._auc(seen, joined(ours), joined(others) if others else None)
        membership = "Forget set against unseen examples like it: AUC (0.5: cannot tell)"
        return Finding(
            self.id,
            scalars=[
                Scalar("membership_auc", membership, "AUC", "high"),
                *([Scalar("class_auc", "What is to be forgotten against all others: AUC", "AUC", "high")] * alike),
            ],
            estimates=estimates,
            attempted={"folds": self.config.folds, "probe": "logistic regression, C = 0.1, features standardised"},
        )

    def _auc(self, seen: Observations, one: Predictions, other: Predictions | None) -> Estimate:
        if other is None or min(len(one), len(other)) < FEW:
            return Estimate(None, note="too few examples to tell apart")
        luck = np.random.default_rng(seen.seed)
        sides = [np.asarray(part.features, dtype=np.float64) for part in (one, other)]
        drawn = [side[np.sort(luck.permutation(len(side))[: self.config.most])] for side in sides]
        folds = min(self.config.folds, *(len(side) for side in drawn))
        return auc_interval(*probe_scores(drawn[0], drawn[1], folds, seen.seed))
