"""SCRUB: leave the original model's predictions on the forget set, stay with them on the retain set, in turns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from expunge.errors import BadInput, Problem
from expunge.methods.base import MethodConfig, Run
from expunge.methods.stages import Stage, StagedMethod
from expunge.requests.request import DeletionRequest
from expunge.tasks.base import Task
from expunge.tasks.kinds import KINDS
from expunge.tasks.statistics import RegressionStatistics, Statistics
from expunge.training.objective import Objective, Term, nll, row_kl


class ScrubConfig(MethodConfig):
    """Hyperparameters of SCRUB; defaults of the authors' small-scale runs."""

    passes: PositiveInt = Field(
        10, description="passes over the retain set; the first of them follow one over the forget set"
    )
    max_passes: PositiveInt = Field(3, description="only so many of the first passes also go over the forget set")
    alpha: float = Field(0.5, ge=0, description="weight of the divergence from the original on the retain set")
    gamma: float = Field(1.0, ge=0, description="weight of the loss on the retain set")
    temperature: PositiveFloat = Field(2.0, description="both models' logits are divided by it; the loss grows by T^2")


def distillation(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return (R,) ``T^2 KL(softmax(teacher / T) || softmax(student / T))`` in nats.

    Args:
        student, teacher: (R, C) logits; the gradient reaches the student only.
        temperature: T.
    """
    return temperature**2 * row_kl(student / temperature, teacher.detach() / temperature)


class Scrub(StagedMethod):
    """In turns, with f_0 the model before unlearning and kl its ``distillation``:

    - on the forget set, in the first ``max_passes`` rounds: minimise ``-kl(f_0, f)``;
    - on the retain set, in every round: minimise ``gamma CE + alpha kl(f_0, f)``.

    Both are averaged over the labelled rows of the step. A model that still is f_0 sits at the minimum of kl, where
    its gradient is zero: the first pass over the forget set moves nothing but what dropout or batch statistics move
    (the authors' code has the same trait), and the later ones forget. For numbers kl is the mean squared distance of
    the outputs. Each pass starts its own optimiser; the authors keep one and cut its rate after passes 5, 8 and 9.

    The rewinding of SCRUB+R is ``stop.every`` with ``stop.forget_target=holdout``: a pass ends, and with it the run,
    when the forget loss is at the level of unseen examples.

    Source: Kurmanji et al. 2023, arXiv 2302.09880, section 3; the authors' ``train_distill``.
    """

    id = "scrub"
    title = "leave the original's predictions on the forget set, stay with them on the retain set, in turns"
    tasks: ClassVar[tuple[str, ...]] = KINDS
    needs: ClassVar[tuple[str, ...]] = ("retain",)
    paper = "Kurmanji et al. 2023, Towards Unbounded Machine Unlearning, arXiv:2302.09880"
    train_defaults: ClassVar[Mapping[str, Any]] = {
        "learning_rate": 5e-4, "weight_decay": 0.1, "warmup": 0.0, "schedule": "constant"
    }  # fmt: skip
    Config: ClassVar[type[MethodConfig]] = ScrubConfig

    def check(self, task: Task, request: DeletionRequest) -> None:
        """Refuse also weights that leave nothing to minimise on the retain set.

        Raises:
            BadInput: every problem.
        """
        super().check(task, request)
        if not self.config.alpha and not self.config.gamma:
            raise BadInput(Problem("alpha and gamma", "are both 0, so nothing is kept", "raise one of them"))

    def objective(self) -> Objective:
        """What is minimised on the retain set; its teacher is the model before unlearning."""
        return self._keep(None)

    def required(self) -> tuple[str, ...]:
        """The retain set."""
        return ("retain",)

    def stages(self, task: Task, run: Run) -> Sequence[Stage]:
        """A pass over the forget set, if it is one of the first rounds, and one over the retain set, per round."""
        teacher = task.copy()
        leave = Term("leave", ("forget",), self._distance(-1.0), "token_mean", reference="teacher")
        found: list[Stage] = []
        for number in range(self.config.passes):
            if number < self.config.max_passes:
                settings = {"epochs": 1, "seed": run.train.seed + 2 * number}
                found.append(Stage("forget", Objective((leave,), teacher=teacher), settings))
            settings = {"epochs": 1, "seed": run.train.seed + 2 * number + 1}
            found.append(Stage("retain", self._keep(teacher), settings))
        return found

    def _keep(self, teacher: Task | None) -> Objective:
        config = self.config
        terms = (
            Term("retain_nll", ("retain",), nll, "token_mean", config.gamma),
            Term("stay", ("retain",), self._distance(1.0), "token_mean", config.alpha, reference="teacher"),
        )
        return Objective(terms, anchor="retain", teacher=teacher)

    def _distance(self, sign: float) -> Any:
        temperature = self.config.temperature

        def values(stats: Statistics) -> Tensor:
            assert stats.teacher_logits is not None
            target = stats.teacher_logits(slice(None))
            if isinstance(stats, RegressionStatistics):
                return sign * (stats.logits - target.detach()).square().mean(-1)
            return sign * distillation(stats.logits, target, temperature)

        return values
