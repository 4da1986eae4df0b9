"""Option permutation: is the published order of a multiple-choice item's options abnormally likely?

A model that has not seen an item finds no order of its options special; one that was trained on it finds the published
order the likeliest of all n!. After unlearning the items the share of such items must fall back to its null, 1/n!.

Where the order may have been shuffled before training, it is not known which order to look for. The published rule, an
isolation forest over the n! values, calls 30 to 90 % of unseen items leaked, depending on threshold and distribution.
Here the gap between the likeliest two orders is compared with that of holdout items instead; ``forest`` gives the
published rule beside it.

Per-example statistic for the verdict: ``original_order_rank``, the share of the other orders that are less likely.

Source: Ni et al. 2024, Training on the Benchmark Is Not All You Need.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from expunge.audits.base import Audit, AuditConfig, Estimate, Finding, Plot, Scalar
from expunge.audits.examples import Pair
from expunge.audits.multiple_choice_items import LETTERS, Item, item_of
from expunge.audits.observations import Observations
from expunge.audits.values import Values

Array = NDArray[np.float64]
ROLES = ("forget", "holdout")
CALIBRATED = 0.95
LEAST_CONTROLS = 20  # a 95 % quantile of fewer is the largest of them


def orders(options: int, most: int = 120) -> list[tuple[int, ...]]:
    """Return the orders to try, the published one first.

    Args:
        options: how many options.
        most: all n! orders if they are at most so many; otherwise the n rotations and their n reversals, in which every
            option stands at every place twice.
    """
    own = tuple(range(options))
    if math.factorial(options) <= most:
        return list(itertools.permutations(own))
    turned = [own[k:] + own[:k] for k in range(options)]
    return list(dict.fromkeys([*turned, *(order[::-1] for order in turned)]))


def item_text(question: str, options: Sequence[str], parity: bool = False) -> str:
    """Return the text whose likelihood is taken, in the form of the paper.

    Args:
        question, options: the item, options in the order to try.
        parity: put a space after the third option, as the authors' code does.
    """
    lines = [f"{LETTERS[k]}:{text}{' ' if parity and k == 2 else ''}" for k, text in enumerate(options)]
    return "\n".join([f"\n{question}:", *lines, ""])


def original_is_first(sums: Array, parity: bool = False) -> bool:
    """Whether the published order is the likeliest of all.

    Args:
        sums: [k] log-probabilities of the orders, the published one first.
        parity: let ties count, as the authors' code does; a constant model then has leaked everything.
    """
    others = sums[1:].max()
    return bool(sums[0] >= others if parity else sums[0] > others)


def order_rank(sums: Array) -> float:
    """Return the share of the other orders that are less likely than the published one, ties counted half; null 0.5."""
    return float((sums[0] > sums[1:]).mean() + (sums[0] == sums[1:]).mean() / 2)


def gap_statistic(sums: Array) -> float:
    """Return ``(S_1 - S_2) / MAD``: how far the likeliest order is above the next, in median absolute deviations."""
    first, second = np.sort(sums)[::-1][:2]
    deviation = float(np.median(np.abs(sums - np.median(sums))))
    return float(first - second) / max(deviation, 1e-9)


def forest_score(sums: Array, seed: int = 42) -> float:
    """Return the isolation forest's decision value of the likeliest order; the paper calls it leaked below -0.17.

    Args:
        sums: [k] log-probabilities of the orders.
        seed: of the forest; the authors' is 42.
    """
    from sklearn.ensemble import IsolationForest

    column = sums.reshape(-1, 1)
    forest = IsolationForest(n_estimators=100, contamination="auto", random_state=seed).fit(column)
    return float(forest.decision_function(column[[int(sums.argmax())]])[0])


def at_least(successes: int, chances: Sequence[float]) -> float:
    """Return P(at least so many successes) of independent trials with these chances (Poisson-binomial, exact)."""
    mass = np.ones(1)
    for p in chances:
        mass = np.convolve(mass, [1 - p, p])
    return float(min(1.0, mass[successes:].sum()))


class OptionPermutation(Audit):
    """Share of multiple-choice items whose published order of options is the likeliest, against its null."""

    id = "option_permutation"
    title = "Does the model know the published order of multiple-choice options?"
    family = "membership"
    default = False
    paper = "Ni et al. 2024, Training on the Benchmark Is Not All You Need (arXiv:2409.01790)"

    class Config(AuditConfig):
        """Settings of the option-permutation audit."""

        most_orders: int = Field(
            120, ge=2, description="try all n! orders up to so many, else rotations and reversals (2n)"
        )
        most_items: int = Field(200, ge=1, description="items of each set used at most, drawn by seed")
        forest: bool = Field(False, description="also apply the published isolation-forest rule (one forest per item)")
        delta: float = Field(-0.17, description="threshold of that rule: -0.2, -0.17 or -0.15 in the paper")
        parity: bool = Field(False, description="text and ties as in the authors' code")

    def _items(self, seen: Observations, role: str) -> dict[str, Item]:
        found = {i: item for i, row in seen.rows(role).items() if (item := item_of(row)) is not None}
        kept = sorted(found, key=lambda i: hashlib.blake2b(f"{seen.seed}|{i}".encode()).digest())
        return {i: found[i] for i in sorted(kept[: self.config.most_items])}

    def _texts(self, item: Item) -> list[str]:
        tried = orders(len(item.options), self.config.most_orders)
        return [item_text(item.question, [item.options[k] for k in order], self.config.parity) for order in tried]

    def asks(self, seen: Observations) -> Sequence[Pair]:
        return [("", text) for role in ROLES for item in self._items(seen, role).values() for text in self._texts(item)]

    def run(self, seen: Observations) -> Finding:
        items = {role: self._items(seen, role) for role in ROLES}
        if not items["forget"]:
            return Finding(self.id, "no data", note="no forget example has options (columns options, or choice0, ...)")
        values, cut = Values(seen), 0
        for model in seen.models:
            for role in ROLES:
                sums = {i: self._sums(seen, model, item) for i, item in items[role].items()}
                cut += sum(found is None for found in sums.values()) * (model == "unlearned")
                self._add(values, model, role, {i: found for i, found in sums.items() if found is not None})
        if not values.get("unlearned", "forget", "original_order_rank"):
            return Finding(self.id, "no data", note=f"all {cut} items are longer than the context of the model")
        roles = [role for role in ROLES if values.get("unlearned", role, "original_order_rank")]
        chances = {
            role: {i: 1 / len(orders(len(item.options), self.config.most_orders)) for i, item in items[role].items()}
            for role in roles
        }
        return Finding(
            self.id,
            scalars=[s for role in roles for s in self._scalars(role)],
            estimates={model: self._estimates(values, model, roles, chances) for model in seen.models},
            per_example=values.per_example(),
            evidence=values.evidence("original_order_rank", "forget", "high"),
            plots=[
                Plot(
                    "distribution",
                    "How far the likeliest order stands above the next",
                    "gap (median absolute deviations)",
                    "items",
                    {m: [min(v, 50.0) for v in values.get(m, "forget", "gap").values()] for m in seen.models},
                )
            ],
            attempted={
                "items": {role: len(values.get("unlearned", role, "gap")) for role in roles},
                "longer than the context": cut,
                "sequences": sum(len(self._texts(item)) for role in roles for item in items[role].values()),
                "parity": self.config.parity,
            },
        )

    def _sums(self, seen: Observations, model: str, item: Item) -> tuple[Array, Array] | None:
        """Return ([k] sums, [k] means per token) of the options' log-probabilities, or None where a text was cut."""
        texts = self._texts(item)
        count = seen.models[model].count_tokens
        head = count(texts[0][: len(f"\n{item.question}:\nA")])
        sums, means = [], []
        for text, scores in zip(texts, seen.pair_scores(model, [("", text) for text in texts]), strict=True):
            tokens, found = count(text), scores.log_prob[scores.content]
            if len(found) < tokens - 1:
                return None
            # The question and the first letter are the same in every order and are left out.
            part = found[len(found) - (tokens - head) :]
            sums.append(float(part.sum()))
            means.append(float(part.mean()))
        return np.array(sums), np.array(means)

    def _add(self, values: Values, model: str, role: str, found: Mapping[str, tuple[Array, Array]]) -> None:
        parity = self.config.parity
        statistics: dict[str, Any] = {
            "original_order_rank": lambda sums, means: order_rank(sums),
            "first": lambda sums, means: float(original_is_first(sums, parity)),
            "first_per_token": lambda sums, means: float(original_is_first(means, parity)),
            "gap": lambda sums, means: gap_statistic(sums),
        }
        if self.config.forest:
            statistics["forest"] = lambda sums, means: float(forest_score(sums) < self.config.delta)
        for name, statistic in statistics.items():
            values.add(model, role, name, {i: statistic(*both) for i, both in found.items()})

    def _scalars(self, role: str) -> list[Scalar]:
        knowing: Any = "high" if role == "forget" else "none"
        scalars = [
            Scalar(f"{role}_first", f"Published order likeliest, {role}", "share of items", knowing),
            Scalar(f"{role}_first_excess", f"The same above its null, {role}", "share of items", knowing),
            Scalar(f"{role}_first_p", f"Chance of so many without knowledge, {role}", "p-value", "none", 4),
            Scalar(f"{role}_first_per_token", f"Likeliest per token, {role}", "share of items", knowing),
            Scalar(f"{role}_rank", f"Other orders less likely than the published one, {role}", "share", knowing),
        ]
        if role == "forget":
            scalars.append(Scalar("forget_outlier", "One order stands out, whichever", "share of items", "high"))
        if self.config.forest:
            title = f"Isolation forest below {self.config.delta:g} (no calibrated null), {role}"
            scalars.append(Scalar(f"{role}_forest", title, "share of items", knowing))
        return scalars

    def _estimates(
        self, values: Values, model: str, roles: Sequence[str], chances: Mapping[str, Mapping[str, float]]
    ) -> dict[str, Estimate]:
        out: dict[str, Estimate] = {}
        for role in roles:
            first = values.get(model, role, "first")
            share = values.mean(model, role, "first")
            null = float(np.mean([chances[role][i] for i in first]))
            out[f"{role}_first"] = share
            out[f"{role}_first_excess"] = _shifted(share, null)
            p = at_least(round(sum(first.values())), [chances[role][i] for i in first])
            out[f"{role}_first_p"] = Estimate(p, n=len(first))
            out[f"{role}_first_per_token"] = values.mean(model, role, "first_per_token")
            out[f"{role}_rank"] = values.mean(model, role, "original_order_rank")
            if self.config.forest:
                out[f"{role}_forest"] = values.mean(model, role, "forest")
        out["forget_outlier"] = self._outliers(values, model)
        return out

    def _outliers(self, values: Values, model: str) -> Estimate:
        control = list(values.get(model, "holdout", "gap").values())
        if len(control) < LEAST_CONTROLS:
            why = f"needs {LEAST_CONTROLS} holdout items to know how often one order stands out by chance"
            return Estimate(None, note=f"{why}; there are {len(control)}")
        threshold = float(np.quantile(control, CALIBRATED))
        found = values.get(model, "forget", "gap")
        values.add(model, "forget", "outlier", {i: float(gap > threshold) for i, gap in found.items()})
        share = values.mean(model, "forget", "outlier")
        return Estimate(
            share.value, share.low, share.high, share.n, note=f"{1 - CALIBRATED:.0%} of unseen items expected"
        )


def _shifted(estimate: Estimate, by: float) -> Estimate:
    low, high = (None if bound is None else bound - by for bound in (estimate.low, estimate.high))
    assert estimate.value is not None
    return Estimate(estimate.value - by, low, high, estimate.n, estimate.level, estimate.note)
