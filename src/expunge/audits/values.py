"""Per-example values of an audit, by model, example set and statistic, and what findings are made of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from expunge.audits.base import Estimate, Evidence
from expunge.audits.observations import Observations
from expunge.errors import BrokenScores

# Scenarios in which unseen examples are no control: who saw a class, a group or a range knows what is like it, and
# clean examples say nothing about corrupted ones. Only an oracle is a yardstick there.
NO_CONTROL = ("class", "group", "range", "corrupted")
# The share of examples that may lack a value under some model without making the comparison meaningless.
SPARE = 0.05


class Values:
    """Collects an audit's per-example values.

    Args:
        seen: the observations they come from.
    """

    def __init__(self, seen: Observations):
        self._seen = seen
        self._values: dict[tuple[str, str], dict[str, dict[str, float]]] = {}

    def add(self, model: str, role: str, statistic: str, values: Mapping[str, float]) -> None:
        """Keep the values of one statistic.

        Args:
            model: name of the model.
            role: the example set.
            statistic: what was measured.
            values: example id -> value; an example without data is left out.

        Raises:
            BrokenScores: a value is NaN or infinite. It must not be averaged into a number that looks computed.
        """
        bad = [i for i, value in values.items() if not math.isfinite(value)]
        if bad:
            raise BrokenScores(
                f"{statistic} of model '{model}' is NaN or infinite for {len(bad)} of {len(values)} examples "
                f"of '{role}', such as {bad[0]}"
            )
        self._values.setdefault((statistic, role), {})[model] = dict(values)

    def get(self, model: str, role: str, statistic: str) -> dict[str, float]:
        """Return example id -> value; empty where nothing was added."""
        return self._values.get((statistic, role), {}).get(model, {})

    def mean(self, model: str, role: str, statistic: str, bounds: tuple[float, float] | None = None) -> Estimate:
        """Return the mean of a statistic over an example set; for its interval and ``bounds`` see ``mean_interval``."""
        return self._seen.mean(role, self.get(model, role, statistic), bounds)

    def per_example(self) -> dict[str, dict[str, dict[str, float]]]:
        """Return model -> example id -> statistic -> value, as findings hold it."""
        out: dict[str, dict[str, dict[str, float]]] = {}
        for (statistic, _), models in self._values.items():
            for model, values in models.items():
                for identity, value in values.items():
                    out.setdefault(model, {}).setdefault(identity, {})[statistic] = value
        return out

    def evidence(
        self, statistic: str, about: Literal["forget", "retain"], knowing_is: Literal["high", "low"]
    ) -> list[Evidence]:
        """Return what the verdict may test: one piece of evidence, or none where the statistic was not measured.

        The holdout examples are the control of the forget set, unless the scenario says that a model which saw the
        forget set knows them too. Examples that some model has no value for are left out for every model, so that all
        stay comparable, unless they are more than a twentieth: then the sets are handed on
        as they are, and the verdict refuses to compare them.
        """
        values = self._values.get((statistic, about), {})
        if not any(values.values()):
            return []
        unlike = self._seen.request.scenario in NO_CONTROL
        control = self._values.get((statistic, "holdout"), {}) if about == "forget" and not unlike else {}
        groups = self._seen.groups(about)
        if about == "forget" and control:
            # A cluster bootstrap needs the groups of every example, or none.
            there = self._seen.groups("holdout")
            groups = {**groups, **there} if groups and there else {}
        return [Evidence(statistic, about, _common(values), _common(control), knowing_is, groups)]


def _common(values: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    if not any(values.values()):
        return {}
    shared = set.intersection(*(set(found) for found in values.values()))
    union = set.union(*(set(found) for found in values.values()))
    if len(shared) < (1 - SPARE) * len(union):
        return {model: dict(found) for model, found in values.items()}
    return {model: {i: v for i, v in found.items() if i in shared} for model, found in values.items()}
