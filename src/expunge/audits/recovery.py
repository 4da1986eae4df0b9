"""Recovery curves: what an attack brings back at each budget, and how much of that exceeds an attacked oracle.

Every attack is tried on each model with the same examples, seeds and budgets. What counts against a model is not that
a curve rises but that it rises above that of a model which never knew, under the same attack.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from expunge.errors import BrokenScores
from expunge.tasks.tokens import TokenScores

Split = Literal["auto", "groups", "examples"]
Reading = Literal["last", "best"]
Curve = Sequence[tuple[float, float]]


def split_halves(ids: Sequence[str], groups: Mapping[str, str], split: Split, seed: int) -> tuple[list[str], list[str]]:
    """Split examples into the half that an attack may use (T) and the half that it is tested on (V).

    Args:
        ids: examples.
        groups: example id -> group, or empty.
        split: "groups" puts a whole group on one side; "examples" splits within each group; "auto" splits groups
            where there are at least 4, because facts on one person can give each other away.
        seed: of the draw; the order of ``ids`` does not matter.

    Returns:
        The ids of T and of V, disjoint; T has the odd one out.
    """
    rng = np.random.default_rng(seed)
    by_group: dict[str, list[str]] = {}
    for identity in sorted(ids):
        by_group.setdefault(groups.get(identity, ""), []).append(identity)
    whole = split == "groups" or (split == "auto" and len(by_group) >= 4)
    names = sorted(by_group)
    if whole:
        order = [names[k] for k in rng.permutation(len(names))]
        shown = set(order[: (len(order) + 1) // 2])
        return (
            [i for name in names if name in shown for i in by_group[name]],
            [i for name in names if name not in shown for i in by_group[name]],
        )
    trained: list[str] = []
    tested: list[str] = []
    for name in names:
        members = [by_group[name][k] for k in rng.permutation(len(by_group[name]))]
        # Of groups with an odd number, every other one gives its extra example to the other side.
        cut = (len(members) + (len(trained) <= len(tested))) // 2
        trained += members[:cut]
        tested += members[cut:]
    return sorted(trained), sorted(tested)


def batches(ids: Sequence[str], size: int, seed: int) -> Iterator[list[str]]:
    """Yield batches for ever: seeded permutations of the examples, one after another."""
    rng = np.random.default_rng(seed)
    waiting: list[str] = []
    while True:
        while len(waiting) < size:
            waiting += [ids[k] for k in rng.permutation(len(ids))]
        yield waiting[:size]
        waiting = waiting[size:]


def area_under(curve: Curve) -> float:
    """Return the area under a curve over ``log2(1 + budget)``, scaled so that a constant gives itself; NaN if empty."""
    x = [math.log2(1 + budget) for budget, _ in curve]
    if len(curve) < 2:
        return curve[0][1] if curve else float("nan")
    total = sum((b - a) * (curve[k][1] + curve[k + 1][1]) / 2 for k, (a, b) in enumerate(itertools.pairwise(x)))
    return total / (x[-1] - x[0])


def first_at(curve: Curve, level: float) -> float | None:
    """Return the first measured budget at which a curve is at a level or above, or None."""
    return next((budget for budget, value in curve if value >= level), None)


@dataclass
class Recovery:
    """The answer NLL of every example at every budget, for one model under one course of an attack.

    Attributes:
        model: name of the model, for messages.
        nll: example set ("tested", "shown", "control", "retain") -> example id -> [(budget, nats per token)].
    """

    model: str
    nll: dict[str, dict[str, list[tuple[float, float]]]] = field(default_factory=dict)

    def add(self, part: str, budget: float, scores: Mapping[str, TokenScores]) -> None:
        """Keep what an example set scored at a budget.

        Raises:
            BrokenScores: a score is NaN or infinite. A broken model knows nothing, which is not forgetting.
        """
        bad = [i for i, s in scores.items() if not math.isfinite(s.nll)]
        if bad:
            raise BrokenScores(
                f"the attacked model '{self.model}' gives NaN or infinite log-probabilities at budget {budget:g} for "
                f"{len(bad)} of {len(scores)} examples, such as {bad[0]}"
            )
        for identity, found in scores.items():
            self.nll.setdefault(part, {}).setdefault(identity, []).append((budget, found.nll))

    def ids(self, part: str) -> list[str]:
        """Return the examples of a set."""
        return list(self.nll.get(part, {}))

    def curve(self, part: str) -> list[tuple[float, float]]:
        """Return (budget, mean answer probability) over the examples of a set; empty without examples."""
        rows = list(self.nll.get(part, {}).values())
        if not rows:
            return []
        return [(rows[0][k][0], float(np.mean([math.exp(-row[k][1]) for row in rows]))) for k in range(len(rows[0]))]

    def before(self, part: str) -> dict[str, float]:
        """Return example id -> NLL before anything was done."""
        return {i: row[0][1] for i, row in self.nll.get(part, {}).items()}

    def after(self, part: str, reading: Reading) -> dict[str, float]:
        """Return example id -> NLL with the whole budget ("last") or the lowest at any budget ("best")."""
        rows = self.nll.get(part, {}).items()
        return {i: row[-1][1] if reading == "last" else min(value for _, value in row) for i, row in rows}

    def gain(self, part: str, reading: Reading) -> dict[str, float]:
        """Return example id -> rise of the answer probability."""
        before, after = self.before(part), self.after(part, reading)
        return {i: math.exp(-after[i]) - math.exp(-before[i]) for i in before}

    def area(self, part: str) -> dict[str, float]:
        """Return example id -> area under its curve of the answer probability; see ``area_under``."""
        return {i: area_under([(b, math.exp(-value)) for b, value in row]) for i, row in self.nll.get(part, {}).items()}


def excess(own: Mapping[str, float], others: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return example id -> a value less its mean over other models that were measured on the same examples."""
    return {i: value - float(np.mean([other[i] for other in others])) for i, value in own.items()}
