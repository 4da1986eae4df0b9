"""Exact removal: train again without the forget set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from expunge.methods.base import MethodConfig, ObjectiveMethod, RemovalLevel, Run
from expunge.requests.request import DeletionRequest
from expunge.tasks.base import Task
from expunge.tasks.kinds import KINDS
from expunge.training.objective import Objective, Term, nll


class RetrainConfig(MethodConfig):
    """Where retraining starts."""

    base: str | None = Field(
        None,
        description="checkpoint that never saw the forget set; without one, fresh weights of the same architecture",
    )


class Retrain(ObjectiveMethod):
    """L = CE(retain) from fresh seeded weights, or from a base checkpoint that never saw the forget set.

    The oracle that everything else is compared with. Exact as long as the base never saw the forget set.
    """

    id = "retrain"
    title = "train again from scratch, or from a base model, without the forget set"
    starts_over: ClassVar[bool] = True
    tasks: ClassVar[tuple[str, ...]] = KINDS
    needs: ClassVar[tuple[str, ...]] = ("retain",)
    removal_level: ClassVar[RemovalLevel] = "exact"
    paper = "Cao and Yang 2015, Towards Making Systems Forget with Machine Unlearning, IEEE S&P"
    train_defaults: ClassVar[Mapping[str, Any]] = {"learning_rate": 1e-3, "epochs": 20}
    Config: ClassVar[type[MethodConfig]] = RetrainConfig

    def objective(self) -> Objective:
        """CE(retain), token mean."""
        return Objective((Term("retain_nll", ("retain",), nll, "token_mean"),), anchor="retain")

    def required(self) -> tuple[str, ...]:
        """The retain set."""
        return ("retain",)

    def start(self, task: Task, run: Run) -> Task:
        """Fresh weights of the same architecture from the run's seed, or the base checkpoint."""
        if self.config.base is None:
            return task.fresh(run.train.seed)
        return task.load_like(self.config.base)

    def adapt(self, model: Task, request: DeletionRequest) -> None:
        """Let a new model take the scales of its inputs from the retain set alone."""
        if self.config.base is None and request.retain is not None:
            model.refit(request.retain)
