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

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from expunge.audits.base import Audit, AuditConfig, Estimate, Finding, Scalar
from expunge.audits.classification.accuracies import in_percent
from expunge.audits.intervals import mean_interval
from expunge.audits.observations import Observations
from expunge.audits.prediction_features import FEATURES, prediction_features
from expunge.audits.unseen import NO_TEST, TEST, add_test_set, unseen_sets
from expunge.audits.values import Values
from expunge.tasks.kinds import CLASSIFIERS
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
    parts = [prediction_features(part, parity)[feature] for part in (members, others, forget)]
    if not len(forget):
        raise ValueError("there is no example to ask about")
    return 100.0 * float(1 - svc_members(*parts).mean())


def attack_sides(
    retain: Predictions, test: Predictions, *, seed: int = 0, parity: bool = False, most: int | None = None
) -> tuple[Predictions, Predictions]:
    """Return the members and the non-members that the attack learns from; arguments as in ``mia_efficacy``."""
    if parity:
        if len(retain) < len(test):
            raise ValueError(f"parity takes the first {len(test)} retain examples, and there are {len(retain)}")
        return retain.take(range(len(test))), test
    size = min(len(retain), len(test), most or len(test))
    luck = np.random.default_rng(seed)
    # By id, so that the order of a set does not matter.
    sides = [part.take(np.argsort(np.asarray(part.ids, dtype=str))) for part in (retain, test)]
    drawn = [side.take(np.sort(luck.permutation(len(side))[:size])) for side in sides]
    return drawn[0], drawn[1]


def held_out_accuracy(members: Array, non_members: Array, seed: int = 0) -> NDArray[np.bool_]:
    """Say of each example that the attack learns from whether the attack, trained on the other half, is right.

    Args:
        members, non_members: (m, k) and (n, k) features, two or more of each.
        seed: of the halves.

    Returns:
        (m + n,), members first. Near one half right, the attack cannot tell and its other answers mean little.
    """
    luck = np.random.default_rng(seed)
    sides = [luck.permutation(len(side)) % 2 == 0 for side in (members, non_members)]
    right = np.zeros(len(members) + len(non_members), dtype=bool)
    for first in (True, False):
        learn = [side == first for side in sides]
        asked = np.concatenate([members[~learn[0]], non_members[~learn[1]]])
        called = svc_members(members[learn[0]], non_members[learn[1]], asked)
        truth = np.arange(len(asked)) < (~learn[0]).sum()
        where = np.concatenate([np.flatnonzero(~learn[0]), len(members) + np.flatnonzero(~learn[1])])
        right[where] = called == truth
    return right


class SvcMia(Audit):
    """MIA-efficacy by an SVC on each of five features; the one on confidence is what papers report."""

    id = "svc_mia"
    title = "What share of the forget set does an attack take for examples the model never saw?"
    tasks: ClassVar[tuple[str, ...]] = CLASSIFIERS
    needs = ("retain",)
    reads = tuple((role, "prediction") for role in ("forget", "retain", "holdout", TEST))
    paper = "Jia et al. 2023, Model Sparsity Can Simplify Machine Unlearning (arXiv:2304.04934)"

    class Config(AuditConfig):
        """Settings of the SVC attack."""

        parity: bool = Field(False, description="the released behaviour: first retain examples, its modified entropy")
        most: int = Field(2000, ge=2, description="members and non-members the attack learns from, each, at most")
        test: Path | None = Field(None, description="examples that no model saw, as for the audit accuracies")

    def prepare(self, seen: Observations) -> None:
        add_test_set(seen, self.config.test)

    def run(self, seen: Observations) -> Finding:
        values, accuracy, tried = Values(seen), {}, {}
        for model in seen.models:
            test, _ = unseen_sets(seen, model)
            retain, forget = seen.predictions(model, "retain"), seen.predictions(model, "forget")
            if test is None or min(len(test), len(retain)) < 4:
                why = NO_TEST if test is None else "fewer than 4 kept or test examples to learn from"
                return Finding(self.id, "no data", note=why)
            members, others = attack_sides(
                retain, test, seed=seen.seed, parity=self.config.parity, most=self.config.most
            )
            known, unknown, asked = (prediction_features(p, self.config.parity) for p in (members, others, forget))
            for name in FEATURES:
                called = svc_members(known[name], unknown[name], asked[name])
                values.add(model, "forget", f"{name}_non_member", forget.by_id(~called))
            right = held_out_accuracy(known[REPORTED], unknown[REPORTED], seen.seed)
            accuracy[model] = in_percent(mean_interval(right.astype(float), seed=seen.seed))
            tried = {"members": len(members), "non-members": len(others), "parity": self.config.parity}
        return Finding(
            self.id,
            scalars=[
                *(Scalar(n, f"MIA-efficacy, {title}", "% called non-members", "low", 2) for n, title in _order()),
                Scalar("attack_accuracy", "How often the attack on confidence is right about examples it "
                       "did not learn from (50: it cannot tell)", "%", digits=2),
            ],
            estimates={
                model: {name: _share(values, model, name) for name in FEATURES} | {"attack_accuracy": accuracy[model]}
                for model in seen.models
            },
            per_example=values.per_example(),
            attempted={**tried, "attack": "SVC, C = 3, radial kernel", "asked": len(seen.examples.dataset("forget"))},
        )  # fmt: skip


def _share(values: Values, model: str, name: str) -> Estimate:
    return in_percent(values.mean(model, "forget", f"{name}_non_member"))


def _order() -> list[tuple[str, str]]:
    names: Mapping[str, Any] = FEATURES
    return [(REPORTED, names[REPORTED]), *((n, t) for n, t in names.items() if n != REPORTED)]
