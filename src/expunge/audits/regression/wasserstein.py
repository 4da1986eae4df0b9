"""Wasserstein distance of a regressor's predictions from those of the model that never saw the data.

W1 between the predictions for the forget set, in the unit of the data, averaged over the numbers that are predicted
and over the oracles. Beside it, the mean absolute difference example by example: distributions can agree where
examples do not. An oracle's own numbers, against the others, are what seeds alone make.

Source: Tarun et al. 2023, Deep Regression Unlearning (arXiv:2210.08196), section 5.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from expunge.audits.base import Audit, Estimate, Finding, Plot, Scalar
from expunge.audits.intervals import mean_interval, statistic_interval
from expunge.audits.observations import Observations
from expunge.tasks.predictions import Predictions

Array = NDArray[np.float64]
SETS = {"forget": "the forget set", "retain": "what is kept", "holdout": "the holdout set"}


def in_unit(predictions: Predictions) -> Array:
    """Return (n, D) predicted numbers in the unit of the data."""
    return np.asarray(predictions.outputs * np.asarray(predictions.scale) + np.asarray(predictions.centre))


def wasserstein(one: Array, other: Array) -> float:
    """Return W1 between (n, D) and (m, D) numbers, one dimension at a time, averaged.

    Raises:
        ValueError: another number of dimensions, or no examples.
    """
    if one.ndim != 2 or other.ndim != 2 or one.shape[1] != other.shape[1] or not len(one) or not len(other):
        raise ValueError(f"shapes {one.shape} and {other.shape} cannot be compared")
    return float(np.mean([stats.wasserstein_distance(one[:, d], other[:, d]) for d in range(one.shape[1])]))


class Wasserstein(Audit):
    """W1, and mean absolute difference, between predictions and the oracles'."""

    id = "wasserstein"
    title = "How far are the predictions from those of a model that never saw the data?"
    tasks: ClassVar[tuple[str, ...]] = ("regressor",)
    needs = ("oracle",)
    reads = tuple((role, "prediction") for role in SETS)
    paper = "Tarun et al. 2023, Deep Regression Unlearning (arXiv:2210.08196)"

    def run(self, seen: Observations) -> Finding:
        roles = [role for role in SETS if role in seen.examples.roles]
        return Finding(
            self.id,
            scalars=[
                Scalar(f"{role}_{kind}", f"{words} on {SETS[role]}", "unit of the data")
                for role in roles
                for kind, words in (("w1", "W1 to the oracles"), ("difference", "Absolute difference from the oracles"))
            ],
            estimates={
                model: {name: e for role in roles for name, e in self._estimates(seen, model, role).items()}
                for model in seen.models
            },
            plots=[
                Plot(
                    "distribution", "What each model predicts for the examples to be forgotten", "unit of the data",
                    "examples", {m: in_unit(seen.predictions(m, "forget"))[:, 0].tolist() for m in seen.models},
                )
            ],
            attempted={"oracles": len(seen.oracles)},
        )  # fmt: skip

    def _estimates(self, seen: Observations, model: str, role: str) -> dict[str, Estimate]:
        others = [name for name in seen.oracles if seen.models[name] is not seen.models[model]]
        if not others:
            nothing = Estimate(None, note="is the only oracle: nothing to compare with")
            return {f"{role}_w1": nothing, f"{role}_difference": nothing}
        rows = {name: in_unit(seen.predictions(name, role)) for name in (model, *others)}
        ids, width = seen.predictions(model, role).ids, rows[model].shape[1]
        # Every number is a sample of its own with the same ids, so that examples are drawn whole.
        samples: dict[str, Any] = {
            f"{name} {d}": dict(zip(ids, row[:, d].tolist(), strict=True))
            for name, row in rows.items()
            for d in range(width)
        }

        def distance(drawn: Mapping[str, Array]) -> float:
            parts = {n: np.stack([drawn[f"{n} {d}"] for d in range(width)], axis=1) for n in (model, *others)}
            return float(np.mean([wasserstein(parts[model], parts[name]) for name in others]))

        apart = np.mean([np.abs(rows[model] - rows[name]).mean(-1) for name in others], axis=0)
        return {
            f"{role}_w1": statistic_interval(samples, distance, seed=seen.seed, resamples=500),
            f"{role}_difference": mean_interval(apart, seed=seen.seed),
        }
