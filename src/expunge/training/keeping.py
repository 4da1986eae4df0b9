"""Which weights a run ends with: the last, those closest to the target, or the last good ones after damage."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from expunge.tasks.base import Task
from expunge.training.checkpoint import gather_state, latest_checkpoint, restore_state
from expunge.training.probe import Probe, ProbePoint
from expunge.training.settings import TrainSettings

if TYPE_CHECKING:
    from expunge.training.loop import TrainResult


class Keeper:
    """Remembers the best weights that a run went through.

    Args:
        task: the model in training.
        settings: say which weights are kept.
        probe: the looks at it; None where nobody looks.
        result: of the run; told which step was kept.
        folder: of the run, whose checkpoints are the last resort.

    Attributes:
        best: the trained weights at the look worth most so far; None before one was.
    """

    def __init__(
        self, task: Task, settings: TrainSettings, probe: Probe | None, result: TrainResult, folder: Path | None
    ):
        self.task, self.settings, self.probe, self.result, self.folder = task, settings, probe, result, folder
        self.best: dict[str, Tensor] | None = None

    def consider(self, point: ProbePoint) -> None:
        """Remember the weights of this moment if what a look found there is worth it."""
        if self._is_worth_keeping(point):
            self.best = gather_state(self.task.model, None)

    def _is_worth_keeping(self, point: ProbePoint) -> bool:
        assert self.probe is not None
        if self.settings.stop.keep == "closest":
            closest = min(self.probe.points, key=self.probe.distance)
            return closest is point and math.isfinite(self.probe.distance(point))
        return self._is_good(point)

    def _is_good(self, point: ProbePoint) -> bool:
        """Whether a point's losses are finite and what is retained has neither collapsed nor left the ceiling."""
        assert self.probe is not None
        sound = all(v is None or math.isfinite(v) for v in (point.forget_nll, point.retain_nll))
        return sound and not self.probe.collapsed(point) and self.probe.within_ceiling(point)

    def settle(self) -> None:
        """Go back to the checkpoint that the rule keeps, or to the last good one after damage."""
        points = self.probe.points if self.probe else []
        if self.settings.stop.keep == "closest" and self.best is not None:
            self._go_back(self.best, min(points, key=self.probe.distance).step)  # type: ignore[union-attr]
            return
        good = [p for p in points if self._is_good(p)]
        damaged = self.result.diverged or (points and points[-1] not in good)
        if damaged and self.result.steps > 0:
            if good and self.best is not None:
                self._go_back(self.best, good[-1].step)
                return
            # The weights of the last step are what broke: only an earlier checkpoint is good.
            checkpoints = self.folder / "checkpoints" if self.folder else None
            stored = latest_checkpoint(checkpoints, before=self.result.steps) if checkpoints else None
            if stored is not None:
                self._go_back(stored[0], stored[1]["step"])
            else:
                self.result.stop_reason += "; there is no checkpoint to go back to, so these are the last weights"

    def _go_back(self, state: Mapping[str, Tensor], step: int) -> None:
        if step != self.result.steps:
            restore_state(self.task.model, None, state)
        self.result.kept_step = step
