"""Which weights are kept: worked out from looks whose numbers are made up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from expunge.training import checkpoint
from expunge.training.keeping import Keeper
from expunge.training.loop import TrainResult
from expunge.training.probe import Probe, ProbePoint
from expunge.training.settings import StopSettings, TrainSettings


class OneWeight:
    """A model whose weight says at which step it is."""

    def __init__(self) -> None:
        self.model = nn.Linear(1, 1, bias=False)
        self.at(0)

    def at(self, step: int) -> None:
        nn.init.constant_(self.model.weight, float(step))

    @property
    def step(self) -> int:
        return int(self.model.weight)


def went(
    looks: list[tuple[float, float]], *, diverged: bool = False, folder: Path | None = None, **stop: Any
) -> tuple[int, TrainResult]:
    """Walk through looks at (forget NLL, retain NLL) of steps 0, 1, ...; return the step of the weights at the end."""
    task, result = OneWeight(), TrainResult(diverged=diverged)
    settings = TrainSettings(stop=StopSettings(every=1, **stop))
    probe = Probe({}, settings.stop, 0, vocabulary=64)
    keeper = Keeper(task, settings, probe, result, folder)  # type: ignore[arg-type]
    for step, (forget, retain) in enumerate(looks):
        task.at(step)
        probe.points.append(ProbePoint(step, forget_nll=forget, retain_nll=retain))
        keeper.consider(probe.points[-1])
        result.steps = result.kept_step = step
    keeper.settle()
    assert result.kept_step == task.step
    return task.step, result


FINE = [(0.1, 0.1), (1.0, 0.2), (2.4, 0.4), (4.0, 0.6)]


def test_the_last_weights_stay_where_nothing_broke() -> None:
    step, result = went(FINE)
    assert (step, result.stop_reason) == (3, "all steps done")


@pytest.mark.parametrize(("target", "kept"), [(0.0, 0), (1.1, 1), (2.0, 2), (9.0, 3)])
def test_the_closest_to_the_target_is_kept(target: float, kept: int) -> None:
    assert went(FINE, keep="closest", forget_target=target)[0] == kept


def test_what_is_above_the_ceiling_is_not_close() -> None:
    assert went(FINE, keep="closest", forget_target=4.0, retain_ceiling=0.2)[0] == 1


@pytest.mark.parametrize("broken", [(9.0, 5.0), (float("nan"), 0.2), (1.0, float("inf"))])
def test_after_damage_the_last_good_ones_come_back(broken: tuple[float, float]) -> None:
    assert went([*FINE, broken])[0] == 3
    assert went([*FINE, broken], diverged=True)[0] == 3


def test_without_a_good_look_a_checkpoint_does(tmp_path: Path) -> None:
    checkpoint.write_checkpoint(tmp_path / "checkpoints", {"weight.weight": torch.tensor([[7.0]])}, {"step": 7})
    task, result = OneWeight(), TrainResult(steps=9, diverged=True)
    Keeper(task, TrainSettings(), None, result, tmp_path).settle()  # type: ignore[arg-type]
    assert (task.step, result.kept_step) == (7, 7)


def test_with_nothing_to_go_back_to_it_says_so() -> None:
    task, result = OneWeight(), TrainResult(steps=9, diverged=True)
    Keeper(task, TrainSettings(), None, result, None).settle()  # type: ignore[arg-type]
    assert "there is no checkpoint to go back to" in result.stop_reason
