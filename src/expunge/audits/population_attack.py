"""The shape of a membership attack that learns from the audited model's own predictions, without shadow models.

It learns to tell examples that are kept (members) from test examples (non-members) and is asked about the forget set.
An audit of this shape says how (``called``) and which share it reports: papers disagree on the direction, and a number
without it can be read the wrong way round.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from expunge.audits.base import Audit, AuditConfig, Estimate, Finding, Scalar
from expunge.audits.intervals import mean_interval
from expunge.audits.observations import Observations
from expunge.audits.unseen import NO_TEST, TEST, TestSet, add_test_set, unseen_sets
from expunge.audits.values import Values
from expunge.tasks.kinds import CLASSIFIERS
from expunge.tasks.predictions import Predictions, joined

Mask = NDArray[np.bool_]


def in_percent(share: Estimate, *, complement: bool = False) -> Estimate:
    """Return a share with its interval in percent.

    Args:
        share: an estimate between 0 and 1.
        complement: of 1 minus the share.
    """

    def turned(value: float | None) -> float | None:
        return None if value is None else 100.0 * (1.0 - value if complement else value)

    ends = (turned(share.low), turned(share.high))
    low, high = ends[::-1] if complement else ends
    return Estimate(turned(share.value), low, high, share.n, share.level, share.note)


def attack_sides(
    retain: Predictions, test: Predictions, *, seed: int = 0, parity: bool = False, most: int | None = None
) -> tuple[Predictions, Predictions]:
    """Return the members and the non-members that an attack learns from.

    Args:
        retain, test: what one model predicts for examples that it was, and was not, trained on.
        seed: of the draw of as many members as non-members; the order of the sets does not matter.
        parity: the first ``len(test)`` retain examples and all test examples, as released.
        most: examples per side at most.

    Raises:
        ValueError: under parity, fewer retain than test examples.
    """
    if parity:
        if len(retain) < len(test):
            raise ValueError(f"parity takes the first {len(test)} retain examples, and there are {len(retain)}")
        return retain.take(range(len(test))), test
    size = min(len(retain), len(test), most or len(test))
    luck = np.random.default_rng(seed)
    sides = [part.take(np.argsort(np.asarray(part.ids, dtype=str))) for part in (retain, test)]
    drawn = [side.take(np.sort(luck.permutation(len(side))[:size])) for side in sides]
    return drawn[0], drawn[1]


class PopulationAttackConfig(AuditConfig):
    """Settings that these attacks share."""

    parity: bool = Field(False, description="the released behaviour, where it differs; see the audit")
    most: int = Field(2000, ge=2, description="members and non-members the attack learns from, each, at most")
    test: TestSet = Field(None, description="examples that no model saw, as for the audit accuracies")


class PopulationAttack(Audit):
    """An attack that is trained on a model's own predictions.

    Class attributes:
        reports: which share of the forget set is the number: of those called members, or of those called non-members.
        attacks: name of a variant -> in words, the main one first.
        label: what a report calls the number.
    """

    reports: ClassVar[Literal["member", "non-member"]]
    attacks: ClassVar[Mapping[str, str]]
    label: ClassVar[str]
    family = "membership"
    tasks: ClassVar[tuple[str, ...]] = CLASSIFIERS
    needs = ("retain",)
    reads = tuple((role, "prediction") for role in ("forget", "retain", "holdout", TEST))
    Config: ClassVar[type[AuditConfig]] = PopulationAttackConfig

    @abstractmethod
    def called(
        self, members: Predictions, others: Predictions, asked: Predictions, names: Sequence[str]
    ) -> Mapping[str, Mask]:
        """Learn from members and others, and say which of the examples asked about are called members.

        Args:
            members, others: what the attacks learn from.
            asked: examples asked about.
            names: which of ``attacks``.

        Returns:
            For each of them, (len(asked),).
        """

    def own_accuracy(self, members: Predictions, others: Predictions, seed: int) -> Mask:
        """Say of each example that the main attack learns from whether, trained on the other half, it is right.

        Args:
            members, others: two or more of each.
            seed: of the halves.

        Returns:
            (m + n,), members first. Near one half right, the attack cannot tell and its other answers mean little.
        """
        luck = np.random.default_rng(seed)
        main = next(iter(self.attacks))
        both = joined((members, others))
        member = np.arange(len(both)) < len(members)
        half = np.concatenate([luck.permutation(len(side)) % 2 == 0 for side in (members, others)])
        right = np.zeros(len(both), dtype=bool)
        for learnt in (half, ~half):
            known, unknown = (both.take(np.flatnonzero(learnt & side)) for side in (member, ~member))
            called = self.called(known, unknown, both.take(np.flatnonzero(~learnt)), (main,))[main]
            right[~learnt] = called == member[~learnt]
        return right

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
            for name, called in self.called(members, others, forget, tuple(self.attacks)).items():
                values.add(model, "forget", f"{name}_{self.id}_member", forget.by_id(called))
            right = self.own_accuracy(members, others, seen.seed)
            accuracy[model] = in_percent(mean_interval(right.astype(float), seed=seen.seed))
            tried = {"members": len(members), "non-members": len(others), "parity": self.config.parity}
        knowing: Any = "high" if self.reports == "member" else "low"
        unit = f"% called {self.reports}s"
        own = "How often the attack is right about examples it did not learn from (50: it cannot tell)"
        return Finding(
            self.id,
            scalars=[
                *(Scalar(name, f"{self.label}, {title}", unit, knowing, 2) for name, title in self.attacks.items()),
                Scalar("attack_accuracy", own, "%", digits=2),
            ],
            estimates={
                model: {name: self._share(values, model, name) for name in self.attacks}
                | {"attack_accuracy": accuracy[model]}
                for model in seen.models
            },
            per_example=values.per_example(),
            attempted={**tried, "asked": len(seen.examples.dataset("forget")), "reported": f"called {self.reports}s"},
        )

    def _share(self, values: Values, model: str, name: str) -> Estimate:
        share = values.mean(model, "forget", f"{name}_{self.id}_member")
        return in_percent(share, complement=self.reports == "non-member")
