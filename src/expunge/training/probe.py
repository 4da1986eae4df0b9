"""Small audits during training: is it forgotten yet, and what did that cost?"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from expunge.tasks.base import Task
from expunge.tasks.encoding import length_batches
from expunge.tasks.examples import EncodedExamples
from expunge.training.plan import draw
from expunge.training.settings import StopSettings

Reduce = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class ProbePoint:
    """What a probe saw at one step; NLLs are means over examples of the nats per answer token.

    Attributes:
        step: optimiser steps done.
        forget_nll, retain_nll, holdout_nll: None where the request has no such set.
        forget_probability, retain_probability: means of exp(-NLL) per example.
    """

    step: int
    forget_nll: float | None = None
    retain_nll: float | None = None
    holdout_nll: float | None = None
    forget_probability: float | None = None
    retain_probability: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the point as plain numbers."""
        return asdict(self)


class Probe:
    """Measures the same seeded subset of each example set whenever asked, and judges the rules of ``StopSettings``.

    Args:
        sets: encoded example sets by role.
        settings: subset size, targets, ceiling, which checkpoint to keep.
        seed: of the subset.
        oracle: a model retrained without the forget set, for the target "oracle".
        vocabulary: size of the vocabulary, or number of classes; a retain NLL above its logarithm is a collapse.
        unit: of the losses, for messages.
        starts_over: the model begins without what training gave it, so that it may be beyond the target before the
            first step; then the target says which checkpoint is closest, and training goes on to its end.
    """

    def __init__(
        self,
        sets: Mapping[str, EncodedExamples],
        settings: StopSettings,
        seed: int,
        oracle: Task | None = None,
        vocabulary: int | None = None,
        unit: str = "nats per token",
        starts_over: bool = False,
    ):
        self.settings, self.unit, self.starts_over = settings, unit, starts_over
        self.sets = {role: _subset(encoded, settings.probe_size, seed) for role, encoded in sets.items()}
        self.points: list[ProbePoint] = []
        self.ceiling = math.log(vocabulary) if vocabulary else math.inf
        self.target: float | None = None
        if isinstance(settings.forget_target, float | int):
            self.target = float(settings.forget_target)
        elif settings.forget_target == "oracle" and oracle is not None:
            self.target = measure(oracle, {"forget": self.sets["forget"]})["forget"][0]

    def look(self, task: Task, step: int, rank: int = 0, world: int = 1, reduce: Reduce | None = None) -> ProbePoint:
        """Measure the model after ``step`` steps and remember the point.

        Args:
            task: the model.
            step: optimiser steps done.
            rank, world, reduce: with several processes, each measures its share and ``reduce`` sums over processes.
        """
        found = measure(task, self.sets, rank, world, reduce)
        empty = (None, None)
        point = ProbePoint(
            step,
            forget_nll=found.get("forget", empty)[0],
            retain_nll=found.get("retain", empty)[0],
            holdout_nll=found.get("holdout", empty)[0],
            forget_probability=found.get("forget", empty)[1],
            retain_probability=found.get("retain", empty)[1],
        )
        self.points.append(point)
        if self.settings.forget_target == "holdout" and self.target is None:
            self.target = point.holdout_nll  # what the model says of data that it never saw, before unlearning
        return point

    def verdict(self) -> str | None:
        """Return why training should stop after the newest point, or None."""
        first, point = self.points[0], self.points[-1]
        if any(v is not None and not math.isfinite(v) for v in (point.forget_nll, point.retain_nll)):
            return "collapsed: the probe's loss is not finite"
        if self.collapsed(point):
            return f"collapsed: retained answers are less likely than random ones (NLL {point.retain_nll:.1f})"
        if not self.within_ceiling(point):
            return f"retain ceiling: NLL rose from {first.retain_nll:.3f} to {point.retain_nll:.3f} {self.unit}"
        if self.target is None or point.forget_nll is None or first.forget_nll is None:
            return None
        if point.forget_nll >= self.target and not (self.starts_over and first.forget_nll >= self.target):
            return f"forget target reached: NLL {point.forget_nll:.3f} >= {self.target:.3f} {self.unit}"
        return None

    def collapsed(self, point: ProbePoint) -> bool:
        """Whether retained answers, likelier than random ones before the first step, no longer are."""
        first = self.points[0]
        if point.retain_nll is None or first.retain_nll is None:
            return False
        return point.retain_nll > self.ceiling > first.retain_nll

    def within_ceiling(self, point: ProbePoint) -> bool:
        """Whether the retain NLL has not risen by more than the retain ceiling allows."""
        first, allowed = self.points[0], self.settings.retain_ceiling
        if allowed is None or point.retain_nll is None or first.retain_nll is None:
            return True
        return point.retain_nll <= first.retain_nll + allowed

    def distance(self, point: ProbePoint) -> float:
        """How far a point is from the forget target, in nats; infinite where retained knowledge broke."""
        if point.forget_nll is None or not math.isfinite(point.forget_nll) or self.target is None:
            return math.inf
        if point.retain_nll is not None and not math.isfinite(point.retain_nll):
            return math.inf
        if not self.within_ceiling(point):
            return math.inf
        return abs(point.forget_nll - self.target)


def measure(
    task: Task, sets: Mapping[str, EncodedExamples], rank: int = 0, world: int = 1, reduce: Reduce | None = None
) -> dict[str, tuple[float, float]]:
    """Return (mean answer NLL, mean answer probability) per set, in one pass over each example.

    Args:
        task: the model; it is read in evaluation mode and left in the mode it was in.
        sets: encoded examples.
        rank, world, reduce: see ``Probe.look``.
    """
    was_training = task.model.training
    task.model.eval()
    totals = torch.zeros(len(sets), 2, dtype=torch.float64)
    try:
        with torch.no_grad():
            for row, encoded in enumerate(sets.values()):
                lengths = [encoded.length(i) for i in range(len(encoded))]
                batches = length_batches(lengths, task.tokens_per_forward, overhead=task.tokens_per_call)
                # Sharded weights need every process in every forward, so shares differ only in what is counted.
                for number, batch in enumerate(batches):
                    if reduce is not None and world > 1 and number % world != rank and not _is_sharded(task):
                        continue
                    mean = task.statistics(encoded.take(batch), rows_only=not _is_sharded(task)).mean_nll.double()
                    share = world if _is_sharded(task) else 1
                    totals[row] += torch.stack([mean.sum(), (-mean).exp().sum()]).cpu() / share
    finally:
        task.model.train(was_training)
    if reduce is not None:
        totals = reduce(totals.to(task.device)).cpu()
    return {
        role: (float(totals[row, 0]) / len(encoded), float(totals[row, 1]) / len(encoded))
        for row, (role, encoded) in enumerate(sets.items())
    }


def _is_sharded(task: Task) -> bool:
    return any(hasattr(p, "full_tensor") for p in task.model.parameters())


def _subset(encoded: EncodedExamples, size: int, seed: int) -> EncodedExamples:
    chosen = sorted(range(len(encoded)), key=lambda i: (draw(seed, "probe", encoded.ids[i]), encoded.ids[i]))[:size]
    return encoded.take(chosen)
