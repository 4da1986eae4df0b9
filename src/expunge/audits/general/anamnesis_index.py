"""Anamnesis index (AIN): how fast is the forgotten relearned, against a model that never knew it?

``AIN = rt(unlearned) / rt(oracle)``, rt the optimiser steps of training on all data until the forget set is known
almost as well as by the original: accuracy at least ``1 - margin`` of its, or of a regressor an absolute error of at
most ``1 + margin`` times its. 1 is ideal; well below 1 the knowledge was still there, well above 1 it was pushed away.

Every relearning is on a copy of its own. The published notebook relearns the oracle in place and measures against it
again, so that from its second call on the denominator is 1.

Sources: Chundawat et al. 2023, Zero-Shot Machine Unlearning (arXiv:2201.05629), section 5.3; Tarun et al. 2023, Deep
Regression Unlearning (arXiv:2210.08196).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from pydantic import Field

from expunge.audits.base import Audit, AuditConfig, Estimate, Finding, Plot, Scalar
from expunge.audits.intervals import mean_interval, statistic_interval
from expunge.audits.observations import Observations
from expunge.errors import ExpungeError
from expunge.tasks.kinds import PREDICTORS
from expunge.tasks.predictions import Predictions


class Diverged(ExpungeError):
    """Relearning diverged: its number of steps would say nothing about knowledge."""


def anamnesis_index(own: Sequence[int], oracle: Sequence[int]) -> float:
    """Return the ratio of mean relearn times.

    Args:
        own, oracle: steps, one per repeat, at least one; oracle's above 0.

    Raises:
        ValueError: no repeats, or an oracle that has nothing to relearn.
    """
    if not own or not oracle or not sum(oracle):
        raise ValueError("an anamnesis index needs relearn times of both, and the oracle's above 0")
    return float(np.mean(own) / np.mean(oracle))


def known(predictions: Predictions) -> float:
    """Return how well a set is known, higher is better: accuracy, or of a regressor minus the absolute error."""
    if predictions.classes:
        return float(predictions.correct.mean())
    return -float(predictions.absolute_error.mean())


def level_of(original: float, margin: float) -> float:
    """Return the level that counts as known again: within ``margin`` of the original's, as ``known`` measures it."""
    return original * (1 - margin) if original >= 0 else original * (1 + margin)


class AnamnesisIndex(Audit):
    """Relearn time of each model, and its ratio to the oracles'."""

    id = "anamnesis_index"
    title = "Is the forgotten relearned as slowly as by a model that never knew it?"
    family = "adversarial"
    tasks: ClassVar[tuple[str, ...]] = PREDICTORS
    needs = ("original", "oracle")
    reads = (("forget", "prediction"),)
    default = False
    paper = "Chundawat et al. 2023, Zero-Shot Machine Unlearning (arXiv:2201.05629)"

    class Config(AuditConfig):
        """Settings of the anamnesis index."""

        margin: float = Field(0.05, gt=0, lt=1, description="how near to the original counts as known again")
        learning_rate: float = Field(1e-3, gt=0, description="of Adam")
        batch_size: int = Field(64, ge=1, description="examples per step")
        max_steps: int = Field(200, ge=1, description="steps after which relearning is given up")
        repeats: int = Field(3, ge=1, description="relearnings of each model, in another order of the data")
        on: Literal["all", "forget"] = Field("all", description="what is trained on: all data (the papers), or forget")

    def run(self, seen: Observations) -> Finding:
        if self.config.on == "all" and "retain" not in seen.examples.roles:
            return Finding(self.id, "no data", note="the request has no retain set to relearn with (on=all)")
        level = level_of(known(seen.predictions("original", "forget")), self.config.margin)
        sets = ["forget", "retain"] if self.config.on == "all" else ["forget"]
        found: dict[str, list[list[float]]] = {}
        done: dict[int, str] = {}
        for model, task in seen.models.items():
            twin = done.setdefault(id(task), model)
            if twin == model:
                found[model] = [self._relearn(seen, model, sets, level, k) for k in range(self.config.repeats)]
            else:
                found[model] = found[twin]
        times = {model: [_first(curve, level) for curve in curves] for model, curves in found.items()}
        plot = Plot(
            "curve",
            "How well the forget set is known while it is relearned",
            "steps",
            "accuracy" if seen.models["unlearned"].kind != "regressor" else "minus absolute error",
            {model: list(enumerate(curves[0])) for model, curves in found.items()},
        )
        return Finding(
            self.id,
            scalars=[
                Scalar("relearn_time", "Steps until the forget set is known again", "steps", "low", 1),
                Scalar("ain", "Anamnesis index (1: as the oracle)", "ratio", "low", 2),
            ],
            estimates={model: self._estimates(seen, times, model) for model in seen.models},
            plots=[plot],
            attempted={
                "level": level, "on": self.config.on, "learning rate": self.config.learning_rate,
                "most steps": self.config.max_steps, "repeats": self.config.repeats,
            },
        )  # fmt: skip

    def _relearn(self, seen: Observations, model: str, sets: Sequence[str], level: float, repeat: int) -> list[float]:
        """Return how well the forget set is known after 0, 1, 2, ... steps, up to the level or the last step."""
        victim = seen.models[model].copy()
        victim.merge_lora()
        victim.model.float().eval()
        victim.model.requires_grad_(True)
        asked = victim.encode(seen.examples.dataset("forget"))
        studied = victim.encode(self._set(seen, sets[0]))
        for role in sets[1:]:
            studied = studied + victim.encode(self._set(seen, role))
        optimiser = torch.optim.Adam(victim.model.parameters(), lr=self.config.learning_rate)
        luck = np.random.default_rng([seen.seed, repeat])
        order: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        curve = [known(victim.observe(asked))]
        while curve[-1] < level and len(curve) <= self.config.max_steps:
            if not len(order):
                order = luck.permutation(len(studied))
            chosen, order = order[: self.config.batch_size], order[self.config.batch_size :]
            with torch.enable_grad():
                loss = victim.statistics(studied.take(chosen.tolist())).nll.mean()
                if not torch.isfinite(loss):
                    raise Diverged(f"'{model}' gives a loss of {float(loss.detach())} after {len(curve) - 1} steps")
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
            optimiser.step()
            curve.append(known(victim.observe(asked)))
        seen.spend(model, victim.cost)
        return curve

    def _set(self, seen: Observations, role: str) -> Dataset:
        chosen: Dataset = getattr(seen.request, role)
        return chosen

    def _estimates(self, seen: Observations, times: Mapping[str, list[int | None]], model: str) -> dict[str, Estimate]:
        own = [t for t in times[model] if t is not None]
        missed = f"not known again within {self.config.max_steps} steps"
        if len(own) < len(times[model]):
            late = Estimate(None, n=len(own), note=f"{missed} in {len(times[model]) - len(own)} repeat(s)")
            return {"relearn_time": late, "ain": late}
        steps = mean_interval([float(t) for t in own], seed=seen.seed)
        others = [name for name in seen.oracles if seen.models[name] is not seen.models[model]]
        if not others:
            ratio = Estimate(None, note="is the only oracle: nothing to compare with")
        elif any(t is None for name in others for t in times[name]):
            least = [self.config.max_steps if t is None else t for name in others for t in times[name]]
            bound = float(np.mean(own) / np.mean(least))
            ratio = Estimate(None, note=f"the oracle is {missed}, so that the index is below {bound:.2g}")
        elif not any(t for name in others for t in times[name]):
            ratio = Estimate(None, note="the oracle knows the forget set as well as the original before it learns it")
        else:
            samples: dict[str, Any] = {name: [float(t or 0) for t in times[name]] for name in (model, *others)}

            def index(drawn: Mapping[str, NDArray[np.float64]]) -> float:
                least = max(1e-9, float(np.mean([drawn[name].mean() for name in others])))
                return float(drawn[model].mean()) / least

            ratio = statistic_interval(samples, index, seed=seen.seed, resamples=500)
        return {"relearn_time": steps, "ain": ratio}


def _first(curve: Sequence[float], level: float) -> int | None:
    return len(curve) - 1 if curve[-1] >= level else None
