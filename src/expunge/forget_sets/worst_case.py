"""Worst-case forget sets: the examples that stay predicted when they are unlearned.

Source: Fan et al. 2024, Challenging Forgets: Unveiling the Worst-Case Forget Sets in Machine Unlearning
(arXiv:2403.07362).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from datasets import Dataset
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from expunge.data.scenarios import luck
from expunge.forget_sets.base import Choice, ForgetSetConfig, ForgetSetSelector, Heard, Hold, SizedConfig, Units
from expunge.forget_sets.bilevel import upper_step
from expunge.forget_sets.lower import Form, Lower
from expunge.tasks.base import Task

RATES: Mapping[Form, float] = {"sign": 1e-3, "unrolled": 0.1}


class WorstCaseConfig(SizedConfig):
    """Settings of the search."""

    form: Form = Field(
        "sign",
        description="how the lower problem is solved: sign (steps along the sign of the gradient, so that no gradient "
        "flows back through them) or unrolled (plain steps, and the gradient goes back through all of them)",
    )
    start: Literal["original", "fresh"] = Field(
        "original", description="unlearn from the model given, or train from fresh weights"
    )
    iterations: PositiveInt = Field(20, description="steps of the upper problem")
    rate: PositiveFloat = Field(1.0, description="step length of the upper problem, weights per nat")
    ridge: NonNegativeFloat = Field(1e-4, description="weight of the squared weights in the upper problem (gamma)")
    snap: int = Field(
        20, ge=0, description="set the weights to 0 and 1 every so many iterations, and after the last; 0 for never"
    )
    unlearn_epochs: PositiveInt = Field(10, description="passes over the training set per lower problem")
    unlearn_rate: PositiveFloat | None = Field(
        None, description="step length of the lower problem; if left out 1e-3 along signs, 0.1 for plain steps"
    )
    batch_size: PositiveInt = Field(256, description="examples per step of the lower problem")
    ascent: NonNegativeFloat = Field(
        0.0, description="also ascend the loss of what is forgotten, with this weight; 0 only leaves it out"
    )
    parity: bool = Field(
        False,
        description="as the reference: start from a random set instead of equal weights, score in training mode, and "
        "for the easiest set turn the sign of the ridge",
    )


class WorstCase(ForgetSetSelector):
    """The units that a model unlearned without them fits best, found by bi-level optimisation.

    Each iteration unlearns from the same start with the weights as they are (see ``Lower``), scores every unit under
    the unlearned model, and moves the weights towards units of low loss (see ``upper_step``). All weights start equal:
    the reference starts from a random set, whose weights of 0 and 1 hardly move (``parity=true``). The default step
    length is larger than the paper's 1e-3 for the same reason.

    With ``unit=class``, whole classes are weighted.
    """

    id = "worst_case"
    title = "what stays predicted when it is unlearned (bi-level search)"
    needs_model = True
    paper = "Fan et al. 2024, Challenging Forgets, arXiv:2403.07362"
    Config: ClassVar[type[ForgetSetConfig]] = WorstCaseConfig
    easiest: ClassVar[bool] = False

    def choose(self, train: Dataset, units: Units, task: Task | None, seed: int, hold: Hold, heard: Heard) -> Choice:
        """Search."""
        assert task is not None
        config, count = self.config, self.count(units)
        lower = Lower(
            task if config.start == "original" else task.fresh(seed),
            task.encode(train),
            torch.tensor(list(units.of)),
            len(units.names),
            epochs=config.unlearn_epochs,
            batch_size=config.batch_size,
            rate=config.unlearn_rate or RATES[config.form],
            ascent=config.ascent,
            seed=seed,
            parity=config.parity,
        )
        state = hold.load()
        if state is None:
            weights, losses = self._first(units, count, seed), torch.zeros(len(units.names), dtype=torch.float64)
            history: list[dict[str, float]] = []
        else:
            weights, losses, history = _restored(state)
        chosen = _top(weights, losses, count, self.easiest, units.names)
        for iteration in range(len(history), config.iterations):
            with task.cost.measured():
                gradient, losses = lower.gradient(weights, iteration, config.form)
            weights = upper_step(
                weights, gradient, rate=config.rate, ridge=config.ridge, total=count, easiest=self.easiest,
                parity=config.parity,
            )  # fmt: skip
            now = _top(weights, losses, count, self.easiest, units.names)
            last = iteration + 1 == config.iterations
            if config.snap and (last or (iteration + 1) % config.snap == 0):
                weights = torch.zeros_like(weights).index_fill(0, torch.tensor(now), 1.0)
            history.append(
                {
                    "chosen_loss": float(losses[now].mean()),
                    "mean_loss": float(losses.mean()),
                    "same_as_before": len(set(now) & set(chosen)) / count,
                }
            )
            chosen = now
            hold.keep(_state(weights, losses, history))
            heard(iteration + 1, config.iterations, history[-1])
        return Choice(weights.tolist(), (losses if self.easiest else -losses).tolist(), history)

    def _first(self, units: Units, count: int, seed: int) -> Tensor:
        total = len(units.names)
        if not self.config.parity:
            return torch.full((total,), count / total, dtype=torch.float64)
        drawn = sorted(range(total), key=lambda u: luck(seed, units.names[u]))[:count]
        return torch.zeros(total, dtype=torch.float64).index_fill(0, torch.tensor(drawn), 1.0)


def _top(weights: Tensor, losses: Tensor, count: int, easiest: bool, names: Sequence[str]) -> list[int]:
    """Return the units of the highest weights; among equal ones, those of the lowest (easiest: highest) loss."""
    sign = -1.0 if easiest else 1.0
    found = zip((-weights).tolist(), (sign * losses).tolist(), names, range(len(names)), strict=True)
    return [unit for *_, unit in sorted(found)[:count]]


HISTORY = ("chosen_loss", "mean_loss", "same_as_before")


def _state(weights: Tensor, losses: Tensor, history: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    steps = {key: [step[key] for step in history] for key in HISTORY}
    return {"weights": weights.tolist(), "losses": losses.tolist(), **steps}


def _restored(state: Mapping[str, Sequence[float]]) -> tuple[Tensor, Tensor, list[dict[str, float]]]:
    steps = zip(*(state[key] for key in HISTORY), strict=True)
    history = [dict(zip(HISTORY, step, strict=True)) for step in steps]
    weights, losses = (torch.tensor(list(state[key]), dtype=torch.float64) for key in ("weights", "losses"))
    return weights, losses, history
